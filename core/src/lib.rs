//! The rules of Roomcast, without I/O and without a clock: the form of names and positions, what follows a position in
//! a log, and how a replica keeps its cache of a log correct. They are tested by properties and by a model checker.
//!
//! Each module uses only the ones before it: `names` <- `log` <- `cache`, `mirror`.

pub mod names;

pub mod log;

pub mod cache;

pub mod mirror;

#[cfg(test)]
mod fuzz;
