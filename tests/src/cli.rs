//! Runs the command line and keeps what it printed.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::standalone::Standalone;

/// What client commands can be run against.
pub trait Reached {
    /// For `--service-url`.
    fn service_url(&self) -> String;
    /// For `--admin-url`.
    fn admin_url(&self) -> String;
}

impl Reached for Standalone {
    fn service_url(&self) -> String {
        Self::service_url(self)
    }

    fn admin_url(&self) -> String {
        Self::admin_url(self)
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Demands exit code 0.
    ///
    /// # Panics
    /// With what the command printed.
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "the command failed:\n{}", self.stderr);
        self
    }

    /// Demands a failure with this exit code, whose text contains `words`, and no panic.
    ///
    /// # Panics
    /// With what the command printed; without words, which would demand nothing.
    pub fn failed_with(self, code: i32, words: &[&str]) {
        assert!(code != 0 && !words.is_empty(), "a failure has a code and a reason");
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked at"), "it panicked:\n{}", self.stderr);
        for word in words {
            assert!(!word.is_empty() && self.stderr.contains(word), "{word:?}:\n{}", self.stderr);
        }
    }

    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// When it isn't one.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            panic!("not JSON ({error}): {}", String::from_utf8_lossy(&self.stdout))
        })
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

/// A command of the binary under test, free of the caller's settings.
#[must_use]
pub fn command(args: &[&str]) -> Command {
    command_of(&crate::binary(), args)
}

/// The same of a copy of the binary.
#[must_use]
pub fn command_of(binary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GEMINGA_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

/// Runs a command to its end.
///
/// # Panics
/// When it can't be started.
#[must_use]
pub fn run(args: &[&str]) -> Ran {
    command(args).stdin(Stdio::null()).output().expect("the binary starts").into()
}

/// Runs a command that may be wrong not to end, and kills it then.
///
/// # Panics
/// When it can't be started, or doesn't end.
#[must_use]
pub fn run_to_its_end(mut command: Command, patience: Duration) -> Ran {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // Pipes have little room, so they are read while it runs.
        let stdout = scope.spawn(move || read_all(stdout.as_mut()));
        let stderr = scope.spawn(move || read_all(stderr.as_mut()));
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let stdout = stdout.join().expect("reading doesn't panic");
        let stderr = stderr.join().expect("reading doesn't panic");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let status = status.unwrap_or_else(|| panic!("it did not end:\n{stderr}"));
        Ran { code: status.code(), stdout, stderr }
    })
}

fn read_all(source: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        source.read_to_end(&mut bytes).expect("a pipe can be read");
    }
    bytes
}

/// Runs a client command against `server`.
///
/// # Panics
/// When it can't be started.
#[must_use]
pub fn against(server: &impl Reached, args: &[&str]) -> Ran {
    client(server, args).stdin(Stdio::null()).output().expect("the binary starts").into()
}

/// Runs a client command against `server` with bytes on its standard input.
///
/// # Panics
/// When it can't be started or doesn't read its input.
#[must_use]
pub fn against_with_input(server: &impl Reached, args: &[&str], input: &[u8]) -> Ran {
    let mut child = client(server, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    std::thread::scope(|scope| {
        // A command that refuses early closes its input; that is for the caller to judge.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("the binary ends").into()
    })
}

/// A client command with the server's addresses in its environment.
#[must_use]
pub fn client(server: &impl Reached, args: &[&str]) -> Command {
    let mut command = command(args);
    command.env("GEMINGA_SERVICE_URL", server.service_url());
    command.env("GEMINGA_ADMIN_URL", server.admin_url());
    command
}
