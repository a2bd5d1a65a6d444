//! A file in memory, and memory for what is made of it.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::time::SystemTime;

#[cfg(unix)]
use crate::crash;

/// Read-only map of a whole file.
#[derive(Debug)]
pub struct Map {
    map: memmap2::Mmap,
    /// The file and what it was when it was mapped; none for bytes that are no file
    file: Option<(File, u64, SystemTime)>,
}

impl Drop for Map {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.file.is_some() {
            crash::unmapped(&self.map);
        }
    }
}

impl Map {
    /// Maps the file.
    ///
    /// The file must not be changed while it is mapped ([`Map::changed`] tells afterwards); when one that is cut short meanwhile is read
    /// where it was, the process ends with a line on stderr and exit code 74.
    pub fn new(file: File) -> io::Result<Map> {
        let stat = file.metadata()?;
        // SAFETY: the map is read-only and private to this owner. That nobody changes the file is the contract above:
        // the operating system gives no way to enforce it.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        // What is read of the file from now on comes in large pages where the file system has them: weights are then read from memory a tenth
        // faster. What the operating system remembers of it already stays as it is. It is advice: a failure changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        #[cfg(unix)]
        crash::mapped(&map);
        Ok(Map { map, file: Some((file, stat.len(), stat.modified()?)) })
    }

    /// Whether the file was written to since it was mapped. (One that was replaced or deleted is still there as it was.)
    pub fn changed(&self) -> bool {
        let Some((file, length, modified)) = &self.file else { return false };
        file.metadata().and_then(|s| Ok((s.len(), s.modified()?))).ok() != Some((*length, *modified))
    }

    /// A map of bytes that are no file.
    pub fn of(bytes: &[u8]) -> io::Result<Map> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1))?;
        map[..bytes.len()].copy_from_slice(bytes);
        Ok(Map { map: map.make_read_only()?, file: None })
    }

    /// Tells the operating system that these bytes are not needed in memory for now. They stay readable.
    #[cfg(unix)]
    pub fn release(&self, range: Range<usize>) {
        if self.file.is_none() {
            // What is in no file could not be read again.
            return;
        }
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
