//! The data plane of mmfast, free of Python.
//!
//! Data flows through the modules in this order: `indexed` (files) → `order` (which document comes
//! next) → `objective` (what the model sees of it) → `pack` (which documents share a row) →
//! `stream` (rows of a training batch). `sample` stands beside them: from logits to a token.

pub mod error;
pub mod indexed;
mod lanes;
pub mod objective;
pub mod order;
pub mod pack;
pub mod random;
pub mod sample;
pub mod stream;
pub mod vfs;

pub use error::{Error, Result};
