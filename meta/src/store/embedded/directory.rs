//! Making a directory so that a power loss doesn't take it away again: a new directory lives in
//! its parent, which must be synced, or everything in it is gone with it. A start that is killed
//! between the two leaves a directory that looks like any other: so whoever is the first to store
//! something in one calls [`sync_above`].

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

/// Makes a directory and those above it that are missing, and syncs the parent of each.
///
/// # Errors
/// What the system said.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    make_dir_with(dir, sync_dir)
}

/// Makes the names of a directory and of those above it durable, as far as this user can have made
/// them.
///
/// # Errors
/// What the system said.
pub fn sync_above(dir: &Path) -> io::Result<()> {
    let writable = |dir: &Path| access(dir, Access::WRITE_OK | Access::READ_OK).is_ok();
    above(dir).filter(|dir| writable(dir)).try_for_each(|dir| match sync_dir(dir) {
        // Such a file system doesn't sync directories; what lies below may be another one.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        synced => synced,
    })
}

/// The directories above `dir`, from the nearest on.
fn above(dir: &Path) -> impl Iterator<Item = &Path> {
    let above = dir.ancestors().skip(1);
    above.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
}

/// Makes a directory's entries durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn make_dir_with(dir: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    for path in missing.into_iter().rev() {
        match std::fs::create_dir(path) {
            Ok(()) => {}
            // By somebody else, meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(error),
        }
        sync(parent_of(path))?;
    }
    Ok(())
}

/// The directory that holds a path's last name.
fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn synced(dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut synced = Vec::new();
        make_dir_with(dir, |parent| {
            synced.push(parent.to_owned());
            sync_dir(parent)
        })?;
        Ok(synced)
    }

    #[test]
    fn the_parent_of_each_directory_that_is_made_is_synced() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let home = home.path();
        let dir = home.join("a/b/c");
        let parents = synced(&dir).expect("made");
        assert_eq!(parents, [home.to_owned(), home.join("a"), home.join("a/b")]);
        assert!(dir.is_dir());
        assert_eq!(synced(&dir).expect("there"), Vec::<PathBuf>::new());
        assert_eq!(synced(&home.join("a/d")).expect("made"), [home.join("a")]);
    }

    #[test]
    fn all_directories_above_one_are_synced_and_those_of_others_passed_over() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dir = home.path().join("a/b");
        let names: Vec<&Path> = above(&dir).take(2).collect();
        assert_eq!(names, [home.path().join("a"), home.path().to_owned()]);
        assert_eq!(above(&dir).last(), Some(Path::new("/")));
        let relative: Vec<&Path> = above(Path::new("x/data")).collect();
        assert_eq!(relative, [Path::new("x"), Path::new(".")]);
        // None that is missing can have been made, and none in /proc.
        sync_above(&dir).expect("synced");
        sync_above(Path::new("/proc/self/fd")).expect("synced");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let file = home.path().join("file");
        std::fs::write(&file, b"").expect("written");
        assert!(make_dir(&file).is_err());
        assert!(make_dir(&file.join("below")).is_err());
    }

    #[test]
    fn a_relative_name_lives_in_the_working_directory() {
        assert_eq!(parent_of(Path::new("data")), Path::new("."));
        assert_eq!(parent_of(Path::new("x/data")), Path::new("x"));
    }
}
