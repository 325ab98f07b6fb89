//! The seeded simulation that the engines run in, and the checker of what happened.

pub mod mutant;
