//! Disks that a scenario may fill up or make read-only: a small file system of its own, in a mount
//! namespace of its own, so that neither privileges nor a trace of it are left.
//!
//! Needs `unshare` and `mount`, as root or with user namespaces. A machine that permits neither
//! (some containers) has no such disk; the scenario then takes the nearest thing there is.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// How a shell gets mounts of its own: with a user's rights, or with root's.
const WAYS: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];

/// A mounted file system. It is gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// A shell in the namespace; it ends with its input.
    shell: Child,
    input: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    mounted: TempDir,
}

impl SmallDisk {
    /// Makes a file system of so many bytes; `None` where that isn't permitted.
    ///
    /// # Panics
    /// When the machine can't do the simplest things.
    #[must_use]
    pub fn mount(bytes: u64) -> Option<Self> {
        let disk = WAYS.iter().find_map(|way| Self::mount_by(way, bytes));
        if disk.is_none() {
            eprintln!("note: mounting isn't permitted here; the scenario does without");
        }
        disk
    }

    fn mount_by(way: &[&str], bytes: u64) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(way).arg("sh");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().ok()?;
        let input = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("it is piped"));
        let mounted = tempfile::Builder::new().prefix("geminga-disk-").tempdir();
        let mounted = mounted.expect("a temporary directory");
        let mut disk = Self { shell, input, answers, mounted };
        let options = format!("-t tmpfs -o size={bytes},mode=0777 geminga");
        let is_mounted = disk.run(&format!("mount {options} {}", disk.mounted.path().display()));
        // Seen from here, through the shell's eyes.
        (is_mounted && disk.path().read_dir().is_ok()).then_some(disk)
    }

    /// Runs a command in the namespace; true if it succeeds.
    fn run(&mut self, command: &str) -> bool {
        let Some(input) = &mut self.input else { return false };
        let line = format!("{command} >/dev/null 2>&1 && echo yes || echo no\n");
        // A shell that couldn't start has closed its input.
        if input.write_all(line.as_bytes()).is_err() {
            return false;
        }
        let mut answer = String::new();
        self.answers.read_line(&mut answer).is_ok() && answer == "yes\n"
    }

    /// Where the file system is, for every process of this user.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let outside = self.mounted.path();
        let inside = outside.strip_prefix("/").expect("temporary paths are absolute");
        Path::new("/proc").join(self.shell.id().to_string()).join("root").join(inside)
    }

    /// Puts a server's data onto the disk: `home/data` is then a link to it.
    ///
    /// # Panics
    /// When the link can't be made.
    pub fn hold_data_of(&self, home: &Path) {
        let data = self.path().join("data");
        std::fs::create_dir_all(&data).expect("an empty disk takes a directory");
        std::os::unix::fs::symlink(data, home.join("data")).expect("a link can be made");
    }

    /// Mounts it read-only, or writable again.
    ///
    /// # Panics
    /// When that fails.
    pub fn set_read_only(&mut self, read_only: bool) {
        let mode = if read_only { "ro" } else { "rw" };
        // Of the mount and not of the file system, which isn't every user's to change.
        let command = format!("mount -o remount,bind,{mode} {}", self.mounted.path().display());
        assert!(self.run(&command), "{command} failed");
    }

    /// Takes all space that is left, as somebody else's file.
    ///
    /// # Panics
    /// When writing fails otherwise than for want of space.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file can be made");
        for piece in [vec![7; 1 << 20], vec![7; 4096]] {
            loop {
                match file.write(&piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("filling the disk failed: {error}"),
                }
            }
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Panics
    /// When the file isn't there.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    /// Whether [`SmallDisk::fill`] has taken something that wasn't given back.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.filler().exists()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("somebody-elses")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.shell.wait());
    }
}
