//! [`Input`]: cuts a file or standard input into lines, on a thread of its own, a bounded number
//! of chunks ahead. A line's bytes are a slice of its chunk: nothing is copied but a line that
//! spans two reads.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Bytes asked for at a time.
const READ_BYTES: usize = 256 * 1024;
/// Chunks that may wait; with `READ_BYTES` the memory for reading ahead.
const CHUNKS_AHEAD: usize = 4;
/// Longest line, and largest whole file: no broker takes more, so reading on is of no use.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Some lines.
#[derive(Debug)]
pub(super) struct Chunk {
    pub lines: Vec<Bytes>,
    /// The last of them had no newline.
    pub unterminated: bool,
}

/// An open input.
pub(super) struct Input {
    reader: Box<dyn Read + Send>,
    bytes: Option<u64>,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self { reader: Box::new(io::stdin()), bytes: None });
        }
        let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("can't read {}", path.display()))?;
        anyhow::ensure!(!metadata.is_dir(), "{} is a directory, not a file", path.display());
        // A pipe or device doesn't say how long it is.
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { reader: Box::new(file), bytes })
    }

    /// How long it is, if it says so.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Starts to read; lines, or all of it as one.
    pub fn read(self, whole: bool) -> mpsc::Receiver<io::Result<Chunk>> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let mut reader = self.reader;
        tokio::task::spawn_blocking(move || {
            let send = |chunk: Chunk| sender.blocking_send(Ok(chunk)).is_ok();
            let result =
                if whole { read_whole(&mut reader, send) } else { read_lines(&mut reader, send) };
            if let Err(error) = result {
                // Nobody listens any more only if the command has ended.
                let _ended = sender.blocking_send(Err(error));
            }
        });
        receiver
    }
}

fn too_long(what: &str) -> io::Error {
    io::Error::other(format!("{what} has more than {} MiB", MAX_MESSAGE_BYTES >> 20))
}

fn read_whole(reader: &mut dyn Read, mut send: impl FnMut(Chunk) -> bool) -> io::Result<()> {
    let mut bytes = Vec::new();
    reader.take(MAX_MESSAGE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(too_long("the file"));
    }
    send(Chunk { lines: vec![bytes.into()], unterminated: false });
    Ok(())
}

/// Ends when `send` answers false.
fn read_lines(reader: &mut dyn Read, mut send: impl FnMut(Chunk) -> bool) -> io::Result<()> {
    let mut held = BytesMut::new();
    loop {
        let start = held.len();
        if start > MAX_MESSAGE_BYTES {
            return Err(too_long("a line"));
        }
        held.resize(start + READ_BYTES, 0);
        let count = match reader.read(&mut held[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                held.truncate(start);
                continue;
            }
            result => result?,
        };
        held.truncate(start + count);
        if count == 0 {
            if !held.is_empty() {
                send(Chunk { lines: vec![held.freeze()], unterminated: true });
            }
            return Ok(());
        }
        // What was there before has no newline, or it would have been sent.
        let Some(last) = held[start..].iter().rposition(|byte| *byte == b'\n') else { continue };
        let whole = held.split_to(start + last + 1).freeze();
        if !send(Chunk { lines: split(&whole), unterminated: false }) {
            return Ok(());
        }
    }
}

/// The lines of bytes that end with a newline.
fn split(whole: &Bytes) -> Vec<Bytes> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (at, byte) in whole.iter().enumerate() {
        if *byte == b'\n' {
            lines.push(whole.slice(start..at));
            start = at + 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Hands out the pieces one read at a time.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            match self.0.pop() {
                None => Ok(0),
                Some(piece) if piece.is_empty() => Err(io::ErrorKind::Interrupted.into()),
                Some(piece) => {
                    into[..piece.len()].copy_from_slice(&piece);
                    Ok(piece.len())
                }
            }
        }
    }

    proptest! {
        #[test]
        fn lines_come_back_however_the_input_is_cut(
            mut pieces in prop::collection::vec(prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'a'), Just(0), Just(b'\r'), Just(0xff)],
                0..9,
            ), 0..20)
        ) {
            let all: Vec<u8> = pieces.concat();
            pieces.reverse();
            let (mut read, mut unterminated) = (Vec::new(), false);
            read_lines(&mut Pieces(pieces), |chunk| {
                for line in &chunk.lines {
                    read.extend_from_slice(line);
                    read.push(b'\n');
                }
                unterminated = chunk.unterminated;
                true
            }).expect("it reads");
            if unterminated {
                read.pop();
            }
            prop_assert_eq!(&read, &all);
            prop_assert_eq!(unterminated, !all.is_empty() && !all.ends_with(b"\n"));
        }
    }

    #[test]
    fn nothing_is_read_on_once_nobody_wants_it() {
        let mut pieces = Pieces(vec![b"never".to_vec(), b"a\n".to_vec()]);
        read_lines(&mut pieces, |_| false).expect("it reads");
        assert_eq!(pieces.0.len(), 1);
    }
}
