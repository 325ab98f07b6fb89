//! [`Network`]: what hosts say to each other, and when it arrives.
//!
//! Hosts talk over *lines*, as over a TCP connection: in order each way, no order between lines. A
//! line whose way is blocked holds what is sent, and breaks when that lasts; what was on its way
//! is lost then, and both ends hear of it later. Single *letters* are for requests to the
//! metadata: they may arrive late, even after their sender has given up, or never.
//!
//! What arrives is put into the host's inbox and handled when the host is stepped, in its runtime.
//! A host that was started again is another one: nothing that was meant for its former life
//! reaches it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{SimTime, micros};
use crate::dice::Dice;
use crate::trace::Trace;

/// What is done when something arrives.
pub type Deliver = Box<dyn FnOnce() + Send>;

/// A host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// A host in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which.
    pub host: HostId,
    /// Counts its starts.
    pub life: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "h{}.{}", self.host.0, self.life)
    }
}

/// A line, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineId(pub u64);

/// An end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who opened it.
    Caller,
    /// Who was called.
    Called,
}

impl End {
    fn index(self) -> usize {
        match self {
            Self::Caller => 0,
            Self::Called => 1,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Caller => Self::Called,
            Self::Called => Self::Caller,
        }
    }
}

struct Parcel {
    to: Place,
    line: Option<LineId>,
    deliver: Deliver,
}

struct Line {
    ends: [Place; 2],
    /// When the last parcel to each end arrives.
    last_at: [u64; 2],
    /// What waits for the way to each end to open.
    held: [VecDeque<Deliver>; 2],
    held_since: Option<u64>,
    patience_us: u64,
    /// Whom to tell when it breaks.
    broken: [Option<Deliver>; 2],
}

#[derive(Default)]
struct Host {
    life: u64,
    up: bool,
    inbox: Vec<Deliver>,
}

#[derive(Default)]
struct Inner {
    hosts: Vec<Host>,
    /// By the time of arrival, then in the order of sending.
    under_way: BTreeMap<(u64, u64), Parcel>,
    sent: u64,
    lines: BTreeMap<LineId, Line>,
    opened: u64,
    /// Ways that nothing passes, from the one to the other.
    blocked: BTreeSet<(HostId, HostId)>,
    /// What more a parcel takes at most on the way from the one to the other, in µs.
    slow: BTreeMap<(HostId, HostId), u64>,
    /// What was lost. It is dropped without the lock, since it may hold ends of other lines.
    lost: Vec<Deliver>,
}

/// The network between all hosts.
pub struct Network {
    time: Arc<SimTime>,
    dice: Dice,
    trace: Trace,
    inner: Mutex<Inner>,
}

impl fmt::Debug for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    pub(crate) fn new(hosts: usize, seed: u64, time: Arc<SimTime>, trace: Trace) -> Self {
        let inner = Inner {
            hosts: std::iter::repeat_with(Host::default).take(hosts).collect(),
            ..Inner::default()
        };
        Self { time, dice: Dice::new(seed, "network", 0), trace, inner: Mutex::new(inner) }
    }

    /// A host starts a new life.
    pub(crate) fn start(&self, host: HostId) -> Place {
        let mut inner = self.inner.lock();
        let known = &mut inner.hosts[host.0];
        known.life += 1;
        known.up = true;
        let place = Place { host, life: known.life };
        let inbox = std::mem::take(&mut known.inbox);
        inner.lost.extend(inbox);
        place
    }

    /// A host's life ends. The other ends of its lines hear of it: soon, or, if it vanished
    /// `silently`, when they have waited for long.
    pub(crate) fn end(&self, host: HostId, silently: bool) {
        let mut inner = self.inner.lock();
        inner.hosts[host.0].up = false;
        let inbox = std::mem::take(&mut inner.hosts[host.0].inbox);
        inner.lost.extend(inbox);
        let concerned = |line: &Line| line.ends.iter().any(|end| end.host == host);
        let lines: Vec<LineId> =
            inner.lines.iter().filter(|(_, line)| concerned(line)).map(|(id, _)| *id).collect();
        let later_us = if silently { 2_000_000 } else { 0 };
        for line in lines {
            self.break_line(&mut inner, line, later_us);
        }
    }

    /// The present life of a host that is up.
    #[must_use]
    pub fn place(&self, host: HostId) -> Option<Place> {
        let inner = self.inner.lock();
        let known = &inner.hosts[host.0];
        known.up.then_some(Place { host, life: known.life })
    }

    /// Lets nothing pass from the one to the other, or lets it pass again.
    pub(crate) fn block(&self, from: HostId, to: HostId, blocked: bool) {
        let mut inner = self.inner.lock();
        if blocked {
            inner.blocked.insert((from, to));
        } else {
            inner.blocked.remove(&(from, to));
        }
    }

    /// Lets everything from the one to the other take up to so much longer.
    pub(crate) fn slow(&self, from: HostId, to: HostId, up_to: Duration) {
        self.inner.lock().slow.insert((from, to), micros(up_to));
    }

    /// Every way is open and fast again.
    pub(crate) fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.blocked.clear();
        inner.slow.clear();
    }

    /// Whether something would pass now.
    #[must_use]
    pub fn passes(&self, from: HostId, to: HostId) -> bool {
        !self.inner.lock().blocked.contains(&(from, to))
    }

    /// Breaks one of the lines, or one of those that a host has opened, if there is any.
    pub(crate) fn break_one(&self, caller: Option<HostId>, which: u64) {
        let mut inner = self.inner.lock();
        let concerned = |line: &Line| caller.is_none_or(|host| line.ends[0].host == host);
        let lines = inner.lines.iter().filter(|(_, line)| concerned(line));
        let lines: Vec<LineId> = lines.map(|(id, _)| *id).collect();
        if let Some(at) = which.checked_rem(lines.len() as u64) {
            let line = lines[usize::try_from(at).unwrap_or(0)];
            self.break_line(&mut inner, line, 0);
        }
    }

    /// How long something takes from the one to the other now.
    #[must_use]
    pub fn delay(&self, from: HostId, to: HostId) -> Duration {
        Duration::from_micros(self.delay_us(&self.inner.lock(), from, to))
    }

    fn delay_us(&self, inner: &Inner, from: HostId, to: HostId) -> u64 {
        let mut delay = self.dice.within(100..1_500);
        if self.dice.permille(10) {
            delay += self.dice.within(5_000..40_000);
        }
        if let Some(most) = inner.slow.get(&(from, to)) {
            delay += self.dice.below(most + 1);
        }
        delay
    }

    /// Sends something that stands for itself.
    pub fn post(&self, from: Place, to: HostId, deliver: Deliver) {
        let mut inner = self.inner.lock();
        let to = Place { host: to, life: inner.hosts[to.0].life };
        let mut delay = self.delay_us(&inner, from.host, to.host);
        if inner.blocked.contains(&(from.host, to.host)) {
            // Lost, or sent again until it passes: by then nobody may wait for it.
            if self.dice.permille(500) {
                inner.lost.push(deliver);
                return;
            }
            delay += self.dice.within(100_000..6_000_000);
        }
        let at = self.time.now_us() + delay;
        inner.send(at, Parcel { to, line: None, deliver });
    }

    /// Opens a line. `broken` is told to the caller when it breaks; that may be soon, if nobody is
    /// there.
    pub fn open(&self, caller: Place, called: HostId, broken: Deliver) -> LineId {
        let mut inner = self.inner.lock();
        inner.opened += 1;
        let id = LineId(inner.opened);
        let host = &inner.hosts[called.0];
        let (life, up) = (host.life, host.up);
        let line = Line {
            ends: [caller, Place { host: called, life }],
            last_at: [0; 2],
            held: [VecDeque::new(), VecDeque::new()],
            held_since: None,
            patience_us: self.dice.within(500_000..6_000_000),
            broken: [Some(broken), None],
        };
        inner.lines.insert(id, line);
        if !up {
            self.break_line(&mut inner, id, 0);
        }
        id
    }

    /// Sets who is told at the called end when the line breaks.
    pub fn on_break(&self, line: LineId, broken: Deliver) {
        let mut inner = self.inner.lock();
        match inner.lines.get_mut(&line) {
            Some(line) => line.broken[End::Called.index()] = Some(broken),
            None => inner.lost.push(broken),
        }
    }

    /// Sends something over a line, from this end to the other. Over a broken one it is lost.
    pub fn send(&self, line: LineId, from: End, deliver: Deliver) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let to = from.other().index();
        let Some(known) = inner.lines.get_mut(&line) else {
            inner.lost.push(deliver);
            return;
        };
        let way = (known.ends[from.index()].host, known.ends[to].host);
        if inner.blocked.contains(&way) || !known.held[to].is_empty() {
            known.held[to].push_back(deliver);
            known.held_since.get_or_insert(self.time.now_us());
            return;
        }
        self.forward(inner, line, to, deliver);
    }

    fn forward(&self, inner: &mut Inner, line: LineId, to: usize, deliver: Deliver) {
        let Some(known) = inner.lines.get(&line) else { return };
        let (from, place) = (known.ends[1 - to].host, known.ends[to]);
        let at = self.time.now_us() + self.delay_us(inner, from, place.host);
        let Some(known) = inner.lines.get_mut(&line) else { return };
        let at = at.max(known.last_at[to]);
        known.last_at[to] = at;
        inner.send(at, Parcel { to: place, line: Some(line), deliver });
    }

    /// Closes a line from one end: what is on its way is lost, and the other end hears of it.
    pub fn close(&self, line: LineId, end: End) {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.lines.get_mut(&line) {
            let untold = known.broken[end.index()].take();
            inner.lost.extend(untold);
            self.break_line(&mut inner, line, 0);
        }
    }

    fn break_line(&self, inner: &mut Inner, id: LineId, later_us: u64) {
        let Some(line) = inner.lines.remove(&id) else { return };
        let of_line = |_: &(u64, u64), parcel: &mut Parcel| parcel.line == Some(id);
        let dropped = inner.under_way.extract_if(.., of_line).map(|(_, parcel)| parcel.deliver);
        inner.lost.extend(dropped);
        inner.lost.extend(line.held.into_iter().flatten());
        for (place, broken) in line.ends.into_iter().zip(line.broken) {
            if let Some(deliver) = broken {
                let at = self.time.now_us() + later_us + self.dice.within(200..20_000);
                inner.send(at, Parcel { to: place, line: None, deliver });
            }
        }
    }

    /// Sends what may pass now, breaks the lines that had to wait for too long, and answers what
    /// arrives by now at `immediate`; the rest is in the inboxes.
    pub(crate) fn turn(&self, immediate: HostId) -> Vec<Deliver> {
        let now = self.time.now_us();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let waiting: Vec<LineId> = inner
            .lines
            .iter()
            .filter(|(_, line)| line.held_since.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.retry(inner, id, now);
        }
        let mut arrived = Vec::new();
        while let Some(first) = inner.under_way.first_entry() {
            if first.key().0 > now {
                break;
            }
            let parcel = first.remove();
            let host = &mut inner.hosts[parcel.to.host.0];
            if !host.up || host.life != parcel.to.life {
                inner.lost.push(parcel.deliver);
            } else if parcel.to.host == immediate {
                arrived.push(parcel.deliver);
            } else {
                host.inbox.push(parcel.deliver);
            }
        }
        let lost = std::mem::take(&mut inner.lost);
        drop(guard);
        drop(lost);
        arrived
    }

    fn retry(&self, inner: &mut Inner, id: LineId, now: u64) {
        let Some(line) = inner.lines.get_mut(&id) else { return };
        if line.held_since.is_some_and(|since| now - since > line.patience_us) {
            self.trace.note(format_args!("line {} breaks", id.0));
            self.break_line(inner, id, 0);
            return;
        }
        let hosts = line.ends.map(|end| end.host);
        let mut held = [VecDeque::new(), VecDeque::new()];
        for to in [0, 1] {
            if !inner.blocked.contains(&(hosts[1 - to], hosts[to])) {
                held[to] = std::mem::take(&mut line.held[to]);
            }
        }
        if line.held.iter().all(VecDeque::is_empty) {
            line.held_since = None;
        }
        for (to, held) in held.into_iter().enumerate() {
            for deliver in held {
                self.forward(inner, id, to, deliver);
            }
        }
    }

    /// Drops everything that is on its way.
    pub(crate) fn clear(&self) {
        let emptied = {
            let mut inner = self.inner.lock();
            (std::mem::take(&mut inner.under_way), std::mem::take(&mut inner.lines))
        };
        drop(emptied);
        let lost = std::mem::take(&mut self.inner.lock().lost);
        drop(lost);
    }

    /// What has arrived at a host.
    pub(crate) fn take_inbox(&self, host: HostId) -> Vec<Deliver> {
        std::mem::take(&mut self.inner.lock().hosts[host.0].inbox)
    }
}

impl Inner {
    fn send(&mut self, at: u64, parcel: Parcel) {
        self.sent += 1;
        self.under_way.insert((at, self.sent), parcel);
    }
}
