//! `geminga perf disk`: what one synchronous write after the other comes to. The file's space is
//! reserved and every block was written once before, so that only data is written and no
//! allocation is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use geminga_bookie::device::real::RealDevice;
use geminga_bookie::device::{AlignedBuffer, BLOCK_BYTES, Device, DeviceFile};
use geminga_proto::env::{Env, Random};
use serde_json::json;

use super::recorder::{Recorder, Window};
use super::report::Report;
use crate::args::perf::DiskArgs;
use crate::exit::{Failed, Outcome};

/// Bytes of one write while the file is prepared.
const PREPARE_BYTES: usize = 4 << 20;

/// A directory that goes with the measurement.
pub(super) struct Scratch(pub PathBuf);

impl Scratch {
    /// Makes a directory of a new name in `dir`.
    pub fn new(dir: &Path, env: &Env) -> anyhow::Result<Self> {
        let path = dir.join(format!("geminga-perf-{:016x}", env.random.next_u64()));
        std::fs::create_dir(&path)
            .with_context(|| format!("can't make a directory in --dir {}", dir.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("warning: can't remove {}: {error}", self.0.display());
        }
    }
}

/// Measures a disk.
pub(super) fn run(args: &DiskArgs) -> Outcome {
    let size = usize::try_from(args.size).unwrap_or(usize::MAX);
    if size == 0 || !size.is_multiple_of(BLOCK_BYTES) || size > 1 << 30 {
        return Err(Failed::usage("--size must be a multiple of 4KiB, up to 1GiB"));
    }
    let file_bytes = args.file_size / args.size * args.size;
    if file_bytes == 0 {
        return Err(Failed::usage("--file-size must be at least --size"));
    }
    let env = Env::system();
    let scratch = Scratch::new(&args.dir, &env)?;
    let device = RealDevice::open(&scratch.0)?;
    let file = device.create("data")?;
    prepare(&*file, file_bytes, &*env.random)?;
    let buffer = filled(size, &*env.random);
    let window = Window::new(Duration::ZERO, args.duration);
    let recorder = Recorder::new(window);
    write_over(&file, &buffer, file_bytes, window, &recorder)?;
    let report = Report {
        test: "disk",
        latency_of: "one synchronous write",
        recorded: recorder.recorded(),
        elapsed: args.duration,
        load: json!({
            "size": args.size, "file_size": file_bytes, "in_flight": 1,
            "duration_s": args.duration.as_secs_f64(),
        }),
        durability: json!({ "sync_mode": device.sync_mode().as_str() }),
    };
    drop((file, device));
    Ok(report.show(args.output)?)
}

/// Writes every block once.
fn prepare(file: &dyn DeviceFile, bytes: u64, random: &dyn Random) -> anyhow::Result<()> {
    let reserved = file.preallocate(bytes).and_then(|()| file.sync_length());
    reserved.context("can't reserve the space")?;
    let buffer = filled(PREPARE_BYTES, random);
    let mut at = 0;
    while at < bytes {
        let length = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(PREPARE_BYTES);
        file.write_at(at, &buffer.as_slice()[..length])?;
        at += length as u64;
    }
    Ok(file.sync()?)
}

fn write_over(
    file: &Arc<dyn DeviceFile>,
    buffer: &AlignedBuffer,
    file_bytes: u64,
    window: Window,
    recorder: &Recorder,
) -> anyhow::Result<()> {
    let size = buffer.len() as u64;
    let mut at = 0;
    loop {
        let due = Instant::now();
        if due >= window.end {
            return Ok(());
        }
        file.write_at(at, buffer.as_slice())?;
        file.sync()?;
        recorder.answered(0, due, size);
        at = (at + size) % file_bytes;
    }
}

/// Bytes that no disk can compress away.
fn filled(bytes: usize, random: &dyn Random) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::new(bytes);
    for chunk in buffer.as_mut_slice().chunks_mut(8) {
        let noise = random.next_u64().to_le_bytes();
        chunk.copy_from_slice(&noise[..chunk.len()]);
    }
    buffer
}
