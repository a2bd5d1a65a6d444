//! A file in memory, and memory for what is made of it.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};

/// Read-only map of a whole file.
#[derive(Debug)]
pub struct Map {
    map: memmap2::Mmap,
}

impl Map {
    /// Maps the file. An empty file cannot be mapped.
    ///
    /// The file must not be changed while it is mapped; a file that is cut short meanwhile raises SIGBUS when the lost
    /// pages are read, as in every program that maps its input.
    pub fn new(file: &File) -> io::Result<Map> {
        // SAFETY: the map is read-only and private to this owner. That nobody changes the file is the contract above:
        // the operating system gives no way to enforce it.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Map { map })
    }

    /// A map of bytes that are no file.
    pub fn of(bytes: &[u8]) -> io::Result<Map> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1))?;
        map[..bytes.len()].copy_from_slice(bytes);
        Ok(Map { map: map.make_read_only()? })
    }

    /// Tells the operating system that these bytes are not needed in memory for now. They stay readable.
    #[cfg(unix)]
    pub fn release(&self, range: Range<usize>) {
        // Whole pages inside the range only; a neighbour may still need the rest.
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end.min(self.map.len()) / PAGE * PAGE);
        if start < end {
            // SAFETY: the map is shared, file-backed and never written, so dropped pages are read again from the file
            // with the same contents. It is advice: a failure changes nothing.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }

    /// Tells the operating system that these bytes are not needed in memory for now. They stay readable.
    #[cfg(not(unix))]
    pub fn release(&self, _range: Range<usize>) {}
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Memory for large arrays, zeroed: of large pages where the operating system has them, as what is made while a user waits waits itself
/// for one page after the other.
#[derive(Debug)]
pub struct Pages {
    map: memmap2::MmapMut,
    len: usize,
}

impl Pages {
    /// `len` bytes; an error if they cannot be had.
    pub fn new(len: usize) -> io::Result<Pages> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        // It is advice: a failure changes nothing.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Pages { map, len })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}
