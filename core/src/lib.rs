//! The rules of Roomcast without any I/O and without a clock: what names and positions look like, what follows a
//! position in a log, and how a replica keeps its copy of a log true. Property-tested and model-checked.
//!
//! Each module uses only those before it: `names` <- `log` <- `cache`.

pub mod names;

pub mod log;

pub mod cache;

#[cfg(test)]
mod fuzz;
