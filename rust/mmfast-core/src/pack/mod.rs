//! Which documents share a row: best-fit-decreasing in O(N + L), and what to do with documents that
//! are longer than a row.

mod best_fit;
mod overlong;
mod spaces;

pub use best_fit::{Bins, best_fit_decreasing};
pub use overlong::{CutAt, Overlong, longest_prefix};
