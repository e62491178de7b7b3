//! The fixed part of `.idx`, `MMIDIDX` version 1, and where its arrays lie.
//!
//! All little-endian, without alignment padding (after Megatron-LM,
//! `megatron/core/datasets/indexed_dataset.py`); S sequences, D = documents + 1:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 9 | magic `MMIDIDX\0\0` |
//! | 9 | 8 | version, u64, 1 |
//! | 17 | 1 | dtype code |
//! | 18 | 8 | S, u64 |
//! | 26 | 8 | D, u64 |
//! | 34 | 4·S | sequence lengths in tokens, i32 |
//! | 34 + 4·S | 8·S | offsets of the sequences in `.bin` in bytes, i64 |
//! | 34 + 12·S | 8·D | first sequence of each document, i64; the last entry is S |
//! | 34 + 12·S + 8·D | S or 0 | modes, one byte a sequence; only in multimodal files |

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use crate::error::{Error, Result};

/// First bytes of every index.
pub const MAGIC: [u8; 9] = *b"MMIDIDX\0\0";
/// The only version there is.
pub const VERSION: u64 = 1;
/// Bytes before the first array.
pub const HEADER_BYTES: usize = 34;

/// Number type of the ids in `.bin`. The discriminant is the code in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    /// 8-bit unsigned.
    U8 = 1,
    /// 8-bit signed.
    I8 = 2,
    /// 16-bit signed.
    I16 = 3,
    /// 32-bit signed, the usual choice for vocabularies above 65,536 ids.
    I32 = 4,
    /// 64-bit signed.
    I64 = 5,
    /// 64-bit float.
    F64 = 6,
    /// 32-bit float in megatron-core. `NeMo`'s older files mean 64-bit float by the same code.
    F32 = 7,
    /// 16-bit unsigned.
    U16 = 8,
}

impl Dtype {
    /// All dtypes, by code.
    pub const ALL: [Self; 8] = [
        Self::U8,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::F64,
        Self::F32,
        Self::U16,
    ];

    /// The code in the header.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The dtype of a code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// Its name in `NumPy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::U16 => "uint16",
        }
    }

    /// The dtype of a `NumPy` name; the error lists those there are.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        found.ok_or_else(|| {
            Error::argument(format!(
                "the format has no dtype {name}; there are uint8, int8, int16, int32, int64, \
                 float64, float32 and uint16"
            ))
        })
    }

    /// Bytes of one id.
    pub const fn item_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The ids it can hold; `None` for floats, which hold no ids.
    pub fn id_range(self) -> Option<RangeInclusive<i64>> {
        match self {
            Self::U8 => Some(0..=i64::from(u8::MAX)),
            Self::I8 => Some(i64::from(i8::MIN)..=i64::from(i8::MAX)),
            Self::I16 => Some(i64::from(i16::MIN)..=i64::from(i16::MAX)),
            Self::I32 => Some(i64::from(i32::MIN)..=i64::from(i32::MAX)),
            Self::I64 => Some(i64::MIN..=i64::MAX),
            Self::U16 => Some(0..=i64::from(u16::MAX)),
            Self::F64 | Self::F32 => None,
        }
    }
}

/// The header's variable fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number type of `.bin`.
    pub dtype: Dtype,
    /// S in the table above.
    pub num_sequences: u64,
    /// D in the table above: documents + 1.
    pub num_document_indices: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.dtype.code());
        bytes.extend_from_slice(&self.num_sequences.to_le_bytes());
        bytes.extend_from_slice(&self.num_document_indices.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        check_magic(path, bytes)?;
        let field = |at: usize| -> Result<u64> {
            load_u64(bytes, at).ok_or_else(|| {
                let len = bytes.len();
                Error::corrupt(
                    path,
                    format!("{len} bytes are less than the {HEADER_BYTES} of a header"),
                )
            })
        };
        let version = field(9)?;
        if version != VERSION {
            return Err(Error::UnsupportedFormat {
                path: path.to_path_buf(),
                detail: format!("version {version}; this build reads version {VERSION}"),
            });
        }
        let num_sequences = field(18)?;
        let num_document_indices = field(26)?;
        let code = bytes.get(17).copied().unwrap_or(0);
        let dtype = Dtype::from_code(code).ok_or_else(|| Error::UnsupportedFormat {
            path: path.to_path_buf(),
            detail: format!("dtype code {code}; the format has codes 1 to 8"),
        })?;
        Ok(Self {
            dtype,
            num_sequences,
            num_document_indices,
        })
    }
}

/// Byte ranges of the arrays in an `.idx` of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Sequence lengths, i32.
    pub(super) lengths: Range<usize>,
    /// Byte offsets, i64.
    pub(super) pointers: Range<usize>,
    /// First sequences of documents, i64.
    pub(super) documents: Range<usize>,
    /// Mode bytes, if the file has them. A file without sequences has none.
    pub(super) modes: Option<Range<usize>>,
}

impl Layout {
    /// Lays the arrays out and checks that they fill the file exactly.
    pub(super) fn new(path: &Path, header: &Header, file_bytes: u64) -> Result<Self> {
        let misfit = || {
            Error::corrupt(
                path,
                format!(
                    "its {file_bytes} bytes do not fit the header, which announces {} sequences \
                     and {} document indices",
                    header.num_sequences, header.num_document_indices
                ),
            )
        };
        let end = |start: u64, items: u64, item_bytes: u64| {
            let end = items.checked_mul(item_bytes)?.checked_add(start)?;
            (end <= file_bytes).then_some(end)
        };
        let lengths_end = end(HEADER_BYTES as u64, header.num_sequences, 4).ok_or_else(misfit)?;
        let pointers_end = end(lengths_end, header.num_sequences, 8).ok_or_else(misfit)?;
        let documents_end = end(pointers_end, header.num_document_indices, 8).ok_or_else(misfit)?;
        let modes_end = end(documents_end, header.num_sequences, 1);
        let has_modes = header.num_sequences > 0 && modes_end == Some(file_bytes);
        if !has_modes && documents_end != file_bytes {
            return Err(misfit());
        }
        let [lengths_end, pointers_end, documents_end, file_end] =
            [lengths_end, pointers_end, documents_end, file_bytes]
                .map(|offset| usize::try_from(offset).unwrap_or(usize::MAX));
        Ok(Self {
            lengths: HEADER_BYTES..lengths_end,
            pointers: lengths_end..pointers_end,
            documents: pointers_end..documents_end,
            modes: has_modes.then_some(documents_end..file_end),
        })
    }
}

/// Little-endian u64 at a byte offset of any alignment.
pub(super) fn load_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*field))
}

fn check_magic(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(&MAGIC) {
        return Ok(());
    }
    let known = |name: &str| {
        Err(Error::UnsupportedFormat {
            path: path.to_path_buf(),
            detail: format!("{name}; convert it to MMIDIDX version 1 with the tool it came from"),
        })
    };
    if bytes.starts_with(b"TNTIDX\0\0") {
        return known("this is the older cached/lazy index (TNTIDX)");
    }
    if bytes.starts_with(b"MMIDRET\0\0") {
        return known("this is NeMo's retrieval index (MMIDRET)");
    }
    let found = bytes.get(..bytes.len().min(MAGIC.len())).unwrap_or(bytes);
    Err(Error::corrupt(
        path,
        format!("it begins with {found:02x?}, not with the magic of an index, {MAGIC:02x?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(num_sequences: u64, num_document_indices: u64) -> Header {
        Header {
            dtype: Dtype::I32,
            num_sequences,
            num_document_indices,
        }
    }

    #[test]
    fn the_header_of_100_sequences_has_the_bytes_megatron_core_writes() {
        let golden: &[u8] = b"\x4d\x4d\x49\x44\x49\x44\x58\x00\x00\x01\0\0\0\0\0\0\0\x04\
            \x64\0\0\0\0\0\0\0\x65\0\0\0\0\0\0\0";
        assert_eq!(header(100, 101).encode(), golden);
        let path = Path::new("x.idx");
        assert_eq!(Header::parse(path, golden).unwrap(), header(100, 101));
        let layout = Layout::new(path, &header(100, 101), 2042).unwrap();
        assert_eq!(layout.documents, 1234..2042);
        assert_eq!(layout.modes, None);
        let layout = Layout::new(path, &header(100, 101), 2142).unwrap();
        assert_eq!(layout.modes, Some(2042..2142));
    }

    #[test]
    fn other_formats_and_versions_are_named() {
        let path = Path::new("x.idx");
        for (bytes, expected) in [
            (&b"TNTIDX\0\0rest"[..], "TNTIDX"),
            (&b"MMIDRET\0\0rest"[..], "retrieval"),
            (&b"PK\x03\x04"[..], "magic"),
            (&b""[..], "magic"),
            (&MAGIC[..], "9 bytes"),
        ] {
            let text = Header::parse(path, bytes).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        let mut bytes = header(0, 1).encode();
        bytes[9] = 2;
        let text = Header::parse(path, &bytes).unwrap_err().to_string();
        assert!(text.contains("version 2"), "{text}");
        bytes[9] = 1;
        bytes[17] = 9;
        let text = Header::parse(path, &bytes).unwrap_err().to_string();
        assert!(text.contains("dtype code 9"), "{text}");
    }

    #[test]
    fn counts_that_overflow_are_refused() {
        let path = Path::new("x.idx");
        for (sequences, documents) in [
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX / 4, 1),
            (u64::MAX / 12, u64::MAX / 8),
            (2, 1),
        ] {
            let layout = Layout::new(path, &header(sequences, documents), 42);
            assert!(layout.is_err(), "{sequences} {documents}");
        }
        assert!(Layout::new(path, &header(0, 1), 42).is_ok());
    }
}
