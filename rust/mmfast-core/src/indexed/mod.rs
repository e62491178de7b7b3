//! Megatron's indexed dataset (`<prefix>.bin` + `<prefix>.idx`, `MMIDIDX` version 1): documents made
//! of sequences of token ids, each sequence with an optional mode byte. Beside the pair lies
//! `<prefix>.mmf` with checksums and provenance; a pair without it is read as well. `<prefix>.media`, if there
//! is one, says what placeholder ids stand for.
//!
//! [`DatasetWriter`] and [`merge`] publish a pair of files at once; [`IndexedDataset`] checks and maps
//! one. The data plane sees it through [`DocumentSource`], so that a stream can also run over
//! documents that live in memory.

mod access;
mod append;
mod blocks;
mod contents;
mod crc32c;
mod gather;
mod header;
mod index;
mod joined;
mod joined_index;
mod journal;
mod map;
mod media;
mod merge;
mod pair;
mod prefix;
mod publish;
mod reader;
mod replay;
mod scan;
mod shards;
mod sidecar;
mod soundness;
mod source;
#[cfg(test)]
mod testing;
mod verify;
mod view;
mod writer;

pub use access::{Access, AccessChoice};
pub use blocks::BLOCK_BYTES;
pub use contents::Written;
pub use gather::Gather;
pub use header::{Dtype, HEADER_BYTES, Header, MAGIC, VERSION};
pub use map::{Item, Tokens};
pub use media::{MAX_REFERENCE_BYTES, MEDIA_BIT};
pub use merge::{merge, merge_on};
pub use prefix::Prefix;
pub use reader::IndexedDataset;
pub use scan::{NUM_MODALITIES, Scan, scan};
pub use shards::ViewOptions;
pub use sidecar::{Notes, Sidecar};
pub use source::DocumentSource;
pub use verify::{DamagedBlock, Verify};
pub use view::DatasetView;
pub use writer::DatasetWriter;
