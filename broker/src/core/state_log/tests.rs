//! The state log against a model (`model`), and over real ledgers in memory (`runtime`, `narrow`).

mod model;
mod narrow;
mod runtime;
