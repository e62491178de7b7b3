//! Files mapped into memory: the only place of the core with `unsafe`.

use std::ops::Range;

use memmap2::{Mmap, MmapMut};

use super::header::Dtype;
use crate::error::{Error, Result};
use crate::lanes::widen;
use crate::vfs::{File, Vfs};

#[cfg(target_endian = "big")]
compile_error!("the files are little-endian and are mapped as they are");

/// Bytes that a processor loads at once.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// A whole file, mapped read-only. Unmapped when dropped, so whoever hands out views holds an `Arc`.
///
/// The file must not shrink while it is mapped: touching a vanished page ends the process (SIGBUS).
/// Our writers never write to a published file, they rename a new one over it.
#[derive(Debug)]
pub(super) struct Map {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl Map {
    /// Maps all of `file`.
    pub(super) fn new(file: &File) -> Result<Self> {
        if file.num_bytes()? == 0 {
            return Ok(Self { map: None });
        }
        #[expect(
            unsafe_code,
            reason = "mapping a file is how ids are read without a copy"
        )]
        // SAFETY: the map is private to this type and only read. That nobody truncates or rewrites
        // the file is the format's rule, stated above: a published file never changes.
        let map = unsafe { Mmap::map(file.handle()) };
        Ok(Self {
            map: Some(map.map_err(|e| Error::io("map", file.path(), e))?),
        })
    }

    /// Reads all of `file` into memory that stands for a map of it; the file may change afterwards.
    pub(super) fn read(vfs: &dyn Vfs, file: &File) -> Result<Self> {
        let num_bytes = file.num_bytes()?;
        if num_bytes == 0 {
            return Ok(Self { map: None });
        }
        let refused = |e| Error::io("make room to read", file.path(), e);
        let num_bytes = usize::try_from(num_bytes).unwrap_or(usize::MAX);
        let mut map = MmapMut::map_anon(num_bytes).map_err(refused)?;
        vfs.read_at(file, 0, &mut map)?;
        Ok(Self {
            map: Some(map.make_read_only().map_err(refused)?),
        })
    }

    /// Bytes that stand for a file's content.
    #[cfg(test)]
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut map = MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(bytes);
        Self {
            map: Some(map.make_read_only().unwrap()),
        }
    }

    /// Asks the processor to bring bytes that are read soon into its caches.
    pub(super) fn prefetch(&self, range: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for line in self
            .bytes()
            .get(range)
            .unwrap_or_default()
            .chunks(LINE_BYTES)
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            #[expect(unsafe_code, reason = "there is no safe way to say it")]
            // SAFETY: a prefetch changes nothing that a program can see, whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = range;
    }

    /// The file's content.
    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

/// A run of ids in the number type of its dataset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tokens<'a> {
    /// `uint8`
    U8(&'a [u8]),
    /// `int8`
    I8(&'a [i8]),
    /// `int16`
    I16(&'a [i16]),
    /// `int32`
    I32(&'a [i32]),
    /// `int64`
    I64(&'a [i64]),
    /// `float64`
    F64(&'a [f64]),
    /// `float32`
    F32(&'a [f32]),
    /// `uint16`
    U16(&'a [u16]),
}

impl<'a> Tokens<'a> {
    /// Views little-endian bytes as `dtype`; `None` if they are misaligned or not whole items.
    pub(super) fn view(bytes: &'a [u8], dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::U8 => Self::U8(bytes),
            Dtype::I8 => Self::I8(plain_slice(bytes)?),
            Dtype::I16 => Self::I16(plain_slice(bytes)?),
            Dtype::I32 => Self::I32(plain_slice(bytes)?),
            Dtype::I64 => Self::I64(plain_slice(bytes)?),
            Dtype::F64 => Self::F64(plain_slice(bytes)?),
            Dtype::F32 => Self::F32(plain_slice(bytes)?),
            Dtype::U16 => Self::U16(plain_slice(bytes)?),
        })
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::U8(_) => Dtype::U8,
            Self::I8(_) => Dtype::I8,
            Self::I16(_) => Dtype::I16,
            Self::I32(_) => Dtype::I32,
            Self::I64(_) => Dtype::I64,
            Self::F64(_) => Dtype::F64,
            Self::F32(_) => Dtype::F32,
            Self::U16(_) => Dtype::U16,
        }
    }

    /// The ids as they stand in `.bin`.
    pub(super) fn bytes(&self) -> &'a [u8] {
        match *self {
            Self::U8(ids) => ids,
            Self::I8(ids) => plain_bytes(ids),
            Self::I16(ids) => plain_bytes(ids),
            Self::I32(ids) => plain_bytes(ids),
            Self::I64(ids) => plain_bytes(ids),
            Self::F64(ids) => plain_bytes(ids),
            Self::F32(ids) => plain_bytes(ids),
            Self::U16(ids) => plain_bytes(ids),
        }
    }

    /// Copies the ids to `out`, which has room for exactly these, widened to 64 bits; `None` if they are
    /// not whole numbers.
    pub(super) fn widen_into(&self, out: &mut [i64]) -> Option<()> {
        match *self {
            Self::U8(ids) => widen(ids, out),
            Self::I8(ids) => widen(ids, out),
            Self::I16(ids) => widen(ids, out),
            Self::I32(ids) => widen(ids, out),
            Self::I64(ids) => out.copy_from_slice(ids),
            Self::U16(ids) => widen(ids, out),
            Self::F32(_) | Self::F64(_) => return None,
        }
        Some(())
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.dtype().item_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Number types without padding whose every bit pattern is a value.
pub(super) trait Plain: Copy {}

/// A number type of the format, for reads into arrays of it.
#[expect(
    private_bounds,
    reason = "only the number types of the format are meant"
)]
pub trait Item: Plain + Default + Send + Sync + 'static {
    /// Its place in the format.
    const DTYPE: Dtype;

    /// An id in this type; `None` if it has no place there.
    fn from_id(id: i64) -> Option<Self>;

    /// Ids that are of this type.
    fn of(tokens: Tokens<'_>) -> Option<&[Self]>;
}

macro_rules! items {
    ($($type:ident $variant:ident $id:ident => $from_id:expr;)*) => {
        $(
            impl Plain for $type {}
            impl Item for $type {
                const DTYPE: Dtype = Dtype::$variant;

                fn from_id($id: i64) -> Option<Self> {
                    $from_id
                }

                fn of(tokens: Tokens<'_>) -> Option<&[Self]> {
                    match tokens {
                        Tokens::$variant(ids) => Some(ids),
                        _ => None,
                    }
                }
            }
        )*
    };
}

items! {
    u8 U8 id => Self::try_from(id).ok();
    i8 I8 id => Self::try_from(id).ok();
    i16 I16 id => Self::try_from(id).ok();
    i32 I32 id => Self::try_from(id).ok();
    i64 I64 id => Some(id);
    f64 F64 _id => None;
    f32 F32 _id => None;
    u16 U16 id => Self::try_from(id).ok();
}

/// Ids as they stand in a `.bin` of some dtype, widened to 64 bits; `out` has room for exactly these.
/// `None` if the dtype holds no ids.
pub(super) fn widen_bytes(bytes: &[u8], dtype: Dtype, out: &mut [i64]) -> Option<()> {
    fn each<const N: usize>(bytes: &[u8], out: &mut [i64], id: impl Fn([u8; N]) -> i64) {
        for (wide, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
            *wide = id(*raw);
        }
    }
    match dtype {
        Dtype::U8 => each(bytes, out, |raw| i64::from(u8::from_le_bytes(raw))),
        Dtype::I8 => each(bytes, out, |raw| i64::from(i8::from_le_bytes(raw))),
        Dtype::I16 => each(bytes, out, |raw| i64::from(i16::from_le_bytes(raw))),
        Dtype::I32 => each(bytes, out, |raw| i64::from(i32::from_le_bytes(raw))),
        Dtype::I64 => each(bytes, out, i64::from_le_bytes),
        Dtype::U16 => each(bytes, out, |raw| i64::from(u16::from_le_bytes(raw))),
        Dtype::F64 | Dtype::F32 => return None,
    }
    Some(())
}

fn plain_slice<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    #[expect(unsafe_code, reason = "ids are viewed in place")]
    // SAFETY: every bit pattern of a `Plain` type is a value, and `align_to` keeps the lifetime.
    let (before, items, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(items)
}

fn plain_bytes<T: Plain>(items: &[T]) -> &[u8] {
    #[expect(unsafe_code, reason = "ids are written from where they are")]
    // SAFETY: a `Plain` type has no padding, every byte is a valid u8, and `align_to` keeps the
    // lifetime. Bytes have no alignment, so nothing is left before or after.
    let (_, bytes, _) = unsafe { items.align_to::<u8>() };
    bytes
}

/// The bytes of numbers, to be filled from a file.
pub(super) fn plain_bytes_mut<T: Plain>(items: &mut [T]) -> &mut [u8] {
    #[expect(unsafe_code, reason = "ids are read to where they are wanted")]
    // SAFETY: every bit pattern of a `Plain` type is a value, so any bytes may be written; it has no
    // padding, and `align_to_mut` keeps the lifetime. Bytes have no alignment, so nothing is left over.
    let (_, bytes, _) = unsafe { items.align_to_mut::<u8>() };
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Disk;

    #[test]
    fn numbers_filled_by_their_bytes_have_the_values_of_the_file() {
        let ids = [1_i32, -2, i32::MAX];
        let mut filled = [0_i32; 3];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        plain_bytes_mut(&mut filled).copy_from_slice(&bytes);
        assert_eq!(filled, ids);
        assert!(plain_bytes_mut(&mut [0_i64; 0]).is_empty());
    }

    #[test]
    fn a_file_read_into_memory_is_as_good_as_its_map() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = Disk.create(&path).unwrap();
        let open = |path| Map::read(&Disk, &Disk.open(path).unwrap()).unwrap();
        assert!(open(&path).bytes().is_empty());
        Disk.write(&mut file, &[7; 10_000]).unwrap();
        let map = open(&path);
        // Unlike a map, it does not see what becomes of the file.
        Disk.create(&path).unwrap();
        assert_eq!(map.bytes(), [7; 10_000]);
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        Disk.create(&path).unwrap();
        assert!(
            Map::new(&Disk.open(&path).unwrap())
                .unwrap()
                .bytes()
                .is_empty()
        );
    }

    #[test]
    fn a_map_outlives_the_removal_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = Disk.create(&path).unwrap();
        Disk.write(&mut file, &[7; 10_000]).unwrap();
        let map = Map::new(&Disk.open(&path).unwrap()).unwrap();
        Disk.remove(&path).unwrap();
        assert_eq!(map.bytes(), [7; 10_000]);
    }

    #[test]
    fn a_view_needs_whole_aligned_items() {
        let ids: Vec<i32> = vec![1, -2, 3];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        // A Vec<u8> may start anywhere; find an aligned start inside a longer buffer.
        let mut buffer = vec![0_u8; bytes.len() + 8];
        let start = buffer.as_ptr().align_offset(8);
        buffer[start..start + bytes.len()].copy_from_slice(&bytes);
        let aligned = &buffer[start..start + bytes.len()];
        assert_eq!(Tokens::view(aligned, Dtype::I32), Some(Tokens::I32(&ids)));
        assert_eq!(Tokens::I32(&ids).bytes(), bytes);
        assert_eq!(Tokens::view(&aligned[..11], Dtype::I32), None);
        assert_eq!(Tokens::view(&aligned[2..10], Dtype::I32), None);
        assert_eq!(Tokens::view(&aligned[2..10], Dtype::U16).unwrap().len(), 4);
    }
}
