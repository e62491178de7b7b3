//! Megatron's indexed dataset (`<prefix>.bin` + `<prefix>.idx`, `MMIDIDX` version 1): documents made
//! of sequences of token ids, each sequence with an optional mode byte.
//!
//! Readers of the data plane see it through [`DocumentSource`], so that a stream can also run over
//! documents that live in memory.

mod source;

pub use source::DocumentSource;
