//! Random draws as a pure function of what they are for: (seed, purpose) and a counter.
//!
//! Nothing here has a state that advances, so a draw never depends on the batch, rank, process or
//! thread that asks for it. Only integers are compared, so the draws are the same on every machine.

mod draws;
mod mt19937;
mod philox;

pub use draws::{Chance, PoissonTable, below};
pub use mt19937::Mt19937;
pub(crate) use philox::halves;
pub use philox::{DocumentDraws, DocumentKey, Generator, Purpose, philox4x32};
