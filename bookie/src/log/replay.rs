//! Opens a log: manifest, footers' directories, and a scan of what a crash left unsealed.
//!
//! After a clean close nothing is scanned. What can't be read is listed as [`Damage`]; unless the
//! settings accept it, the log refuses to open, and nothing on the disk is changed but a lost copy
//! of the manifest. Otherwise what
//! was lost answers *unknown* or *corrupt*, and ledgers that may have had a fence there take no
//! ordinary adds any more.

use std::sync::Arc;

use geminga_proto::env::Env;
use geminga_proto::id::{LedgerId, SegmentId};
use geminga_proto::storage::SyncMode;

use super::chore::Preparation;
use super::codec::Home;
use super::damaged::Damaged;
use super::footer::{self, FooterHeader, Row};
use super::group::Link;
use super::manifest::{self, Copies, Manifest, ManifestError, Sealed, Slot, SlotState};
use super::record::RecordKind;
use super::scan::{self, Scan};
use super::scrub::Asked;
use super::segment;
use super::state::{Counters, LogState, Turns, Unsealed};
use super::table::{Fence, Ledger, LedgerTable};
use super::{Origin, keeper};
use crate::config::Limits;
use crate::device::{AlignedBuffer, BLOCK_BYTES, Device, DeviceError, DeviceFile};
use crate::error::{Damage, OpenError};

mod loss;

use loss::Loss;

/// What a start found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// How writes are made durable here.
    pub sync_mode: SyncMode,
    /// True if there was nothing to replay: the log is new or was closed.
    pub clean: bool,
    /// Ledgers known.
    pub ledgers: u64,
    /// Sealed segments.
    pub segments: u64,
    /// Groups that were read again.
    pub replayed_groups: u64,
    /// Entries in them.
    pub replayed_entries: u64,
    /// What is lost or damaged, accepted by the settings.
    pub damage: Vec<Damage>,
}

/// A log that is open.
pub(crate) struct Opened {
    pub state: LogState,
    pub copies: Copies,
    pub report: OpenReport,
}

/// The parts of a log that is being opened.
struct Opening<'a> {
    device: &'a dyn Device,
    limits: Limits,
    /// No younger ledger can be in what is lost.
    youngest_ledger: LedgerId,
    manifest: Manifest,
    table: LedgerTable,
    highest_ledger: LedgerId,
    /// As [`LogState::known_ledger`].
    known_ledger: LedgerId,
    limbo_up_to: Option<LedgerId>,
    /// Directories of readable sealed segments, and the unreadable ones as `None`.
    sealed: Vec<(Slot, Sealed, Option<Vec<Row>>)>,
    /// Unsealed segments that can't be read, and the highest ledger that may be in each.
    lost: Vec<(Slot, SegmentId, LedgerId)>,
    scanned: Vec<Scanned>,
    report: OpenReport,
}

/// An unsealed segment whose records are in memory.
struct Scanned {
    unsealed: Unsealed,
    damaged: bool,
    /// May be in what is damaged, beyond those that headers tell of.
    highest_ledger: LedgerId,
}

/// Opens the log of `origin`.
pub(crate) fn open(
    device: &dyn Device,
    limits: Limits,
    origin: Origin,
    accept_damage: bool,
    env: &Env,
) -> Result<Opened, OpenError> {
    let manifest = load_manifest(device, origin)?;
    let limits = fit(device, limits, &manifest)?;
    let report = OpenReport {
        sync_mode: device.sync_mode(),
        clean: true,
        ledgers: 0,
        segments: 0,
        replayed_groups: 0,
        replayed_entries: 0,
        damage: Vec::new(),
    };
    let mut opening = Opening {
        device,
        limits,
        youngest_ledger: origin.youngest_ledger.unwrap_or(LedgerId::MAX),
        manifest,
        table: LedgerTable::default(),
        highest_ledger: LedgerId(0),
        known_ledger: LedgerId(0),
        limbo_up_to: None,
        sealed: Vec::new(),
        lost: Vec::new(),
        scanned: Vec::new(),
        report,
    };
    opening.read_sealed()?;
    opening.scan_unsealed()?;
    if !opening.report.damage.is_empty() && !accept_damage {
        let directory = device.describe();
        return Err(OpenError::Damaged { directory, damage: opening.report.damage });
    }
    opening.remove_orphans()?;
    opening.start(env)
}

fn load_manifest(device: &dyn Device, origin: Origin) -> Result<Manifest, OpenError> {
    let Origin { instance, initialized, .. } = origin;
    let directory = device.describe();
    match Manifest::load(device, instance) {
        Ok(Some(manifest)) => Ok(manifest),
        Ok(None) if initialized => Err(OpenError::ManifestLost { directory }),
        // Stored with the first segment.
        Ok(None) => Ok(Manifest::new(instance)),
        // The first start was cut short, before anything was stored.
        Err(ManifestError::Unfinished) if !initialized => Ok(Manifest::new(instance)),
        Err(ManifestError::Damaged | ManifestError::Unfinished) => {
            Err(OpenError::ManifestLost { directory })
        }
        Err(ManifestError::Newer(version)) => {
            let known = manifest::VERSION;
            Err(OpenError::NewerFormat { what: "manifest", directory, version, known })
        }
        Err(ManifestError::Foreign) => Err(OpenError::ForeignLog { directory }),
        Err(ManifestError::Device(error)) => Err(OpenError::Device(error)),
    }
}

/// Segments are at most a 32nd of what a small disk has.
fn fit(device: &dyn Device, mut limits: Limits, manifest: &Manifest) -> Result<Limits, OpenError> {
    let space = device.space()?;
    let allocated: u64 = manifest.slots.iter().map(|slot| slot.capacity_bytes).sum();
    let available = space.available_bytes.saturating_sub(limits.keep_free_bytes);
    let total = available.saturating_add(allocated);
    let block = BLOCK_BYTES as u64;
    let share = (total / 32 / block * block).max(limits.least_segment_bytes);
    limits.segment_bytes = limits.segment_bytes.min(share);
    limits.first_segment_bytes = limits.first_segment_bytes.min(limits.segment_bytes);
    Ok(limits)
}

impl Opening<'_> {
    /// Reads the directory of every sealed segment.
    fn read_sealed(&mut self) -> Result<(), OpenError> {
        for slot in self.manifest.slots.clone() {
            let SlotState::Sealed(sealed) = slot.state else { continue };
            self.raise_highest(sealed.highest_ledger);
            let rows = match self.directory(&slot, &sealed) {
                Ok(rows) => Some(rows),
                Err(why) => {
                    self.lose(&slot, sealed.segment, why, sealed.highest_ledger)?;
                    None
                }
            };
            if sealed.damaged && rows.is_some() {
                self.raise_limbo(sealed.highest_ledger);
                self.report.damage.push(Damage {
                    segment: sealed.segment,
                    file: segment::file_name(slot.number),
                    what: "parts of it were found damaged after a crash".to_owned(),
                });
            }
            for row in rows.iter().flatten() {
                self.learn(row);
            }
            self.sealed.push((slot, sealed, rows));
        }
        // References are kept oldest first.
        self.sealed.sort_unstable_by_key(|(_, sealed, _)| sealed.segment);
        Ok(())
    }

    fn learn(&mut self, row: &Row) {
        self.known_ledger = self.known_ledger.max(row.ledger);
        // The segment was sealed when the ledger was still there.
        if self.manifest.deleted.contains(row.ledger) {
            return;
        }
        let ledger = self.table.entry(row.ledger).or_insert_with(|| Ledger::new(row.token));
        ledger.raise_lac(row.lac);
        if row.fenced {
            ledger.raise_fence(Fence::Durable);
        }
    }

    /// The rows of a sealed segment, or why they can't be had.
    fn directory(&self, slot: &Slot, sealed: &Sealed) -> Result<Vec<Row>, Loss> {
        let file = self.open_segment(slot)?;
        let mut block = AlignedBuffer::new(BLOCK_BYTES);
        file.read_at(0, block.as_mut_slice()).map_err(|error| Loss::lost(&error))?;
        segment::check_header(block.as_slice(), sealed.segment, self.manifest.instance)?;
        let end = sealed.data_end + sealed.footer_bytes();
        let len = file.len().map_err(Loss::Device)?;
        if len < end {
            return Err(Loss::Lost(format!("it ends at byte {len} and should reach {end}")));
        }
        let home = Home { instance: self.manifest.instance, segment: sealed.segment };
        let bytes = footer::directory_bytes(sealed.ledgers);
        let mut buffer = AlignedBuffer::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        file.read_at(sealed.data_end, buffer.as_mut_slice()).map_err(|error| Loss::lost(&error))?;
        let header = FooterHeader::decode(buffer.as_slice(), home, sealed.data_end);
        let matches = |header: &FooterHeader| {
            (header.ledgers, header.entries, header.data_end)
                == (sealed.ledgers, sealed.entries, sealed.data_end)
        };
        let rows = header.filter(matches).and_then(|header| {
            header.rows(&buffer.as_slice()[BLOCK_BYTES..], home, sealed.data_end)
        });
        rows.ok_or_else(|| Loss::Lost("its index is damaged or another segment's".to_owned()))
    }

    /// Opens a segment's file. Only one that isn't there is lost: what else is in the way may be
    /// over at the next start, and nothing may be given up for it.
    fn open_segment(&self, slot: &Slot) -> Result<Arc<dyn DeviceFile>, Loss> {
        self.device.open(&segment::file_name(slot.number)).map_err(|error| match error {
            DeviceError::NotFound { .. } | DeviceError::NotADirectory { .. } => Loss::lost(&error),
            passing => Loss::Device(passing),
        })
    }

    /// Scans what a crash left.
    fn scan_unsealed(&mut self) -> Result<(), OpenError> {
        let mut unsealed: Vec<(SegmentId, Slot, Option<LedgerId>)> = self
            .manifest
            .slots
            .iter()
            .filter_map(|slot| match slot.state {
                SlotState::Unsealed { segment, lost_up_to } => Some((segment, *slot, lost_up_to)),
                SlotState::Free | SlotState::Sealed(_) => None,
            })
            .collect();
        unsealed.sort_unstable_by_key(|(segment, ..)| *segment);
        for (segment, slot, lost_up_to) in unsealed {
            // If it was lost before, what is younger than at that time isn't in it.
            let youngest = lost_up_to.unwrap_or(LedgerId::MAX).min(self.youngest_ledger);
            match self.scan_one(&slot, segment) {
                Ok(scan) => self.replay(&slot, segment, &scan, youngest),
                Err(why) => {
                    self.lose(&slot, segment, why, youngest)?;
                    self.lost.push((slot, segment, youngest));
                }
            }
        }
        // Only now: what is lost may have been of a ledger that a later segment tells of.
        let damaged = self.scanned.iter().filter(|scanned| scanned.damaged);
        let beyond = damaged.map(|scanned| scanned.highest_ledger).max();
        if let Some(beyond) = beyond {
            self.raise_limbo(self.highest_ledger.max(beyond));
        }
        Ok(())
    }

    fn scan_one(&self, slot: &Slot, segment: SegmentId) -> Result<Scan, Loss> {
        let file = self.open_segment(slot)?;
        let mut block = AlignedBuffer::new(BLOCK_BYTES);
        let header = file.read_at(0, block.as_mut_slice());
        if header.is_ok() {
            segment::check_header(block.as_slice(), segment, self.manifest.instance)?;
        }
        let len = file.len().map_err(Loss::Device)?;
        if len < slot.capacity_bytes {
            let capacity = slot.capacity_bytes;
            return Err(Loss::Lost(format!("it ends at byte {len} and should reach {capacity}")));
        }
        let home = Home { instance: self.manifest.instance, segment };
        let proof = self.named_by_next(segment)?;
        #[cfg(any(test, feature = "simulation"))]
        let scan = match self.limits.planted {
            Some(crate::defect::Defect::OldSeeds) => scan::scan_as::<true>,
            _ => scan::scan,
        };
        #[cfg(not(any(test, feature = "simulation")))]
        let scan = scan::scan;
        let mut scan = scan(file.as_ref(), home, slot.capacity_bytes, proof)
            .map_err(|error| Loss::lost(&error))?;
        match header {
            // Groups know their segment without it; but then there must be some.
            Err(_) if scan.groups > 0 => scan.damaged.insert(0, 0..segment::DATA_START),
            Err(error) => return Err(Loss::lost(&error)),
            Ok(()) => {}
        }
        Ok(scan)
    }

    /// The group that the first one of the segment after `segment` follows, if it can be told. What
    /// reclaim has written follows nothing.
    fn named_by_next(&self, segment: SegmentId) -> Result<Option<Link>, Loss> {
        let is_sorted =
            |slot: &&Slot| matches!(slot.state, SlotState::Sealed(sealed) if sealed.sorted);
        let slots = self.manifest.slots.iter().filter(|slot| !is_sorted(slot));
        let later = slots.filter_map(|slot| Some((slot.segment()?, slot)));
        let next = later.filter(|(id, _)| *id > segment).min_by_key(|(id, _)| *id);
        let Some((next, slot)) = next else { return Ok(None) };
        let home = Home { instance: self.manifest.instance, segment: next };
        match self.open_segment(slot) {
            Ok(file) => Ok(scan::predecessor_of_first(file.as_ref(), home).unwrap_or_default()),
            Err(Loss::Device(error)) => Err(Loss::Device(error)),
            // It is listed as lost itself.
            Err(Loss::Lost(_) | Loss::Newer(_)) => Ok(None),
        }
    }

    /// Takes the records of a scan into memory.
    fn replay(&mut self, slot: &Slot, segment: SegmentId, scan: &Scan, youngest: LedgerId) {
        let mut unsealed = Unsealed::new(segment, slot.number, slot.capacity_bytes);
        unsealed.tail = scan.data_end;
        unsealed.last_group = scan.last;
        self.report.replayed_groups += scan.groups;
        self.report.clean &= scan.groups == 0 && scan.damaged.is_empty();
        self.raise_highest(scan.highest_ledger);
        let mut entries = std::collections::BTreeMap::new();
        let mut foreign = Vec::new();
        for (stored, offset) in &scan.records {
            let record = stored.record;
            self.raise_highest(record.ledger);
            if self.manifest.deleted.contains(record.ledger) {
                continue;
            }
            let known = self.table.entry(record.ledger);
            let ledger = known.or_insert_with(|| Ledger::new(record.token));
            if ledger.token != record.token {
                // Admission takes no such record.
                foreign.push(*offset..*offset + stored.stored_bytes() as u64);
                continue;
            }
            ledger.raise_lac(record.lac);
            unsealed.ledgers.insert(record.ledger);
            match record.kind {
                RecordKind::Entry => {
                    let place = footer::Place::new(*offset, record.payload_bytes);
                    entries.insert((record.ledger, record.entry), place);
                    self.report.replayed_entries += 1;
                }
                RecordKind::Fence | RecordKind::State { fenced: true } => {
                    ledger.raise_fence(Fence::Durable);
                }
                RecordKind::State { fenced: false } => {}
            }
        }
        unsealed.entries = std::sync::Arc::new(entries);
        let damaged = !(scan.damaged.is_empty() && foreign.is_empty());
        for range in scan.damaged.iter().chain(&foreign) {
            self.report.damage.push(Damage {
                segment,
                file: segment::file_name(slot.number),
                what: format!("bytes {} to {} are damaged", range.start, range.end),
            });
        }
        let highest_ledger = if scan.open_ended { youngest } else { LedgerId(0) };
        self.scanned.push(Scanned { unsealed, damaged, highest_ledger });
    }

    fn lose(
        &mut self,
        slot: &Slot,
        segment: SegmentId,
        why: Loss,
        highest: LedgerId,
    ) -> Result<(), OpenError> {
        let file = segment::file_name(slot.number);
        let what = match why {
            Loss::Lost(what) => what,
            Loss::Newer(version) => {
                let directory = self.device.describe();
                let (what, known) = ("segment", segment::VERSION);
                return Err(OpenError::NewerFormat { what, directory, version, known });
            }
            Loss::Device(error) => return Err(error.into()),
        };
        self.report.clean = false;
        self.report.damage.push(Damage { segment, file, what });
        self.raise_limbo(highest);
        Ok(())
    }

    /// A bound that says that what was lost may have been of any ledger is no ledger's id.
    fn raise_highest(&mut self, highest: LedgerId) {
        self.highest_ledger = self.highest_ledger.max(highest);
        if highest < LedgerId::MAX {
            self.known_ledger = self.known_ledger.max(highest);
        }
    }

    fn raise_limbo(&mut self, highest: LedgerId) {
        self.limbo_up_to = self.limbo_up_to.max(Some(highest));
    }

    /// Removes segment files that a crash left before the manifest named them, or after it no
    /// longer did; and forgets free files that are gone, for nothing was in them.
    fn remove_orphans(&mut self) -> Result<(), OpenError> {
        let names = self.device.list()?;
        self.manifest.slots.retain(|slot| {
            let name = segment::file_name(slot.number);
            let kept = slot.state != SlotState::Free || names.contains(&name);
            if !kept {
                tracing::warn!(name, "a spare segment file is gone; another one is made");
            }
            kept
        });
        for name in names {
            let named = |slot: &Slot| segment::file_name(slot.number) == name;
            let is_segment = name.starts_with("segment-") && name.ends_with(".seg");
            if is_segment && !self.manifest.slots.iter().any(named) {
                tracing::info!(name, "removing a segment file that the manifest doesn't list");
                self.device.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Seals what was scanned, begins a new segment, and hands over the state.
    fn start(mut self, env: &Env) -> Result<Opened, OpenError> {
        let device = self.device;
        // The name of one that is made is synced with the first segment's.
        let (copies, _) = Copies::open(device)?;
        let space = device.space()?;
        // The last group of all, wherever it was: the chain goes on from there.
        let mut chain = self.manifest.last_group;
        for Scanned { unsealed, .. } in &self.scanned {
            if unsealed.last_group.sequence > chain.sequence {
                chain = unsealed.last_group;
            }
        }
        let placeholder = Unsealed::new(SegmentId(0), 0, 0);
        let mut state = LogState {
            limits: self.limits,
            table: std::mem::take(&mut self.table),
            queue: std::collections::VecDeque::new(),
            queue_bytes: 0,
            pending_bytes: 0,
            unplaced_bytes: 0,
            active: placeholder,
            next: None,
            sealing: std::collections::VecDeque::new(),
            sealed: std::collections::BTreeMap::new(),
            manifest: Manifest::new(self.manifest.instance),
            chain,
            in_flight: None,
            unproven: false,
            highest_ledger: self.highest_ledger,
            known_ledger: self.known_ledger,
            limbo_up_to: self.limbo_up_to,
            lowest_ledger: None,
            poisoned: None,
            closing: false,
            disk_bytes: 0,
            allocated_bytes: 0,
            spare_bytes: 0,
            no_space: false,
            wanted_revision: self.manifest.metadata_revision,
            rewrite: None,
            now: env.clock.monotonic(),
            open_since: None,
            in_flight_since: None,
            owned_append: None,
            damaged: Damaged::default(),
            asked: Asked::default(),
            suspects: std::collections::BTreeSet::new(),
            doomed: std::collections::BTreeSet::new(),
            counters: Counters::default(),
            turns: Turns::default(),
        };
        state.install(self.manifest);
        state.note_space(space);
        for (slot, sealed, rows) in &self.sealed {
            state.attach(slot, sealed, rows.as_deref().unwrap_or_default(), rows.is_some());
        }
        set_aside(&copies, &mut state, &self.lost)?;
        for Scanned { unsealed, damaged, highest_ledger } in &self.scanned {
            let mut job = state.seal_job(unsealed, *damaged, true);
            job.highest_ledger = job.highest_ledger.max(*highest_ledger);
            let (manifest, now_ms) = (state.manifest.clone(), env.clock.wall_ms());
            let (manifest, rows) = keeper::seal(device, &copies, manifest, &job, now_ms)?;
            state.sealed(manifest, unsealed.segment, &rows);
        }
        // Whoever has met a crash may have lost more than was looked for.
        let damaged = state.sealed.iter().filter(|(_, sealed)| sealed.damaged && sealed.readable);
        state.suspects = damaged.map(|(segment, _)| *segment).collect();
        keeper::give_back(device, &state)?;
        begin(device, &copies, &mut state, env)?;
        self.report.ledgers = state.table.len() as u64;
        self.report.segments = state.sealed.len() as u64;
        Ok(Opened { state, copies, report: self.report })
    }
}

/// Prepares the first active segment.
fn begin(
    device: &dyn Device,
    copies: &Copies,
    state: &mut LogState,
    env: &Env,
) -> Result<(), OpenError> {
    state.note_space(device.space()?);
    let full = || OpenError::Full { directory: device.describe() };
    let mut preparation = state.first_preparation().ok_or_else(full)?;
    let share = state.first_share(preparation);
    let mut split = None;
    match &mut preparation {
        Preparation::Reuse(slot) => {
            split = (share < slot.capacity_bytes).then_some(share);
            slot.capacity_bytes = share;
        }
        Preparation::Create { capacity_bytes } => *capacity_bytes = share,
    }
    let manifest = state.manifest.clone();
    let is_first = manifest.slots.is_empty();
    let prepared = keeper::prepare(device, copies, manifest, preparation, |file, bytes| {
        if is_first {
            keeper::prewrite_first(device, env.clock.as_ref(), file, bytes)
        } else {
            Ok(0)
        }
    });
    match prepared {
        Ok((manifest, active)) => {
            // Only now that the manifest counts no more of it than that.
            if let Some((file, bytes)) = active.file.as_ref().zip(split) {
                file.truncate(bytes)?;
                file.sync_length()?;
            }
            state.install(manifest);
            state.active = active;
            state.note_space(device.space()?);
            Ok(())
        }
        Err(DeviceError::Full { .. }) => Err(full()),
        Err(error) => Err(error.into()),
    }
}

/// Notes of unsealed segments that can't be read which ledgers can have been in them, durably:
/// younger ones take adds. They stay unsealed: a later start, which may find them whole, looks
/// again.
fn set_aside(
    copies: &Copies,
    state: &mut LogState,
    lost: &[(Slot, SegmentId, LedgerId)],
) -> Result<(), DeviceError> {
    if lost.is_empty() {
        return Ok(());
    }
    let mut manifest = state.manifest.clone();
    for (_, segment, highest_ledger) in lost {
        let (segment, highest_ledger, data_end) = (*segment, *highest_ledger, segment::DATA_START);
        let (ledgers, entries, damaged) = (0, 0, true);
        let sealed = Sealed {
            segment,
            data_end,
            ledgers,
            entries,
            highest_ledger,
            damaged,
            sorted: false,
            verified_ms: 0,
        };
        if let Some(slot) = manifest.slot_of_mut(segment) {
            slot.state = SlotState::Unsealed { segment, lost_up_to: Some(highest_ledger) };
            state.attach(slot, &sealed, &[], false);
        }
    }
    if manifest != state.manifest {
        manifest.store(copies)?;
        state.install(manifest);
    }
    Ok(())
}

/// Names of the manifest's copies, for messages.
pub(crate) fn manifest_names() -> String {
    manifest::FILES.join(" and ")
}
