//! The state log against a model (`model`), and over real ledgers in memory (`runtime`).

mod model;
mod runtime;
