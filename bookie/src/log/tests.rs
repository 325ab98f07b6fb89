//! The log on the faulty disk, turned by hand: no threads, so every moment can be chosen.

mod crash;
mod damage;
mod fences;
mod model;
mod reclaim;
mod rig;
mod scrub;
mod space;
mod unreadable;
