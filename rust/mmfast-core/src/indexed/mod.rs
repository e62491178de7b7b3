//! Megatron's indexed dataset (`<prefix>.bin` + `<prefix>.idx`, `MMIDIDX` version 1): documents made
//! of sequences of token ids, each sequence with an optional mode byte.
//!
//! [`DatasetWriter`] and [`merge`] publish a pair of files at once; [`IndexedDataset`] checks and maps
//! one. The data plane sees it through [`DocumentSource`], so that a stream can also run over
//! documents that live in memory.

mod append;
mod gather;
mod header;
mod index;
mod map;
mod merge;
mod prefix;
mod publish;
mod reader;
mod scan;
mod source;
mod writer;

pub use gather::Gather;
pub use header::{Dtype, HEADER_BYTES, Header, MAGIC, VERSION};
pub use map::Tokens;
pub use merge::{merge, merge_on};
pub use prefix::Prefix;
pub use reader::IndexedDataset;
pub use scan::{NUM_MODALITIES, Scan, scan};
pub use source::DocumentSource;
pub use writer::{DatasetWriter, Written};
