//! What a file is, if it is not GGUF: the mistakes that people make with downloads.

use std::path::Path;

use crate::error::{Error, Result, shown};

/// Passes bytes that begin like a GGUF file of a version that pp-run reads.
pub fn check_magic(bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(b"GGUF") {
        return Err(Error::malformed(not_gguf(bytes)));
    }
    let Some(version) = bytes.get(4..8) else {
        return Err(Error::malformed(format!(
            "truncated: {} bytes, which is not even a GGUF header: download it again",
            bytes.len()
        )));
    };
    let version: [u8; 4] = version.try_into().expect("four bytes");
    match u32::from_le_bytes(version) {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported("GGUF version 1 is not read any more; expected 2 or 3: convert the model again")),
        0 => Err(Error::malformed("GGUF version is 0; expected 2 or 3")),
        v if (1..=0xffff).contains(&v.swap_bytes()) => Err(Error::unsupported(format!(
            "a big-endian GGUF file (version {}); pp-run reads little-endian ones: convert the model for this machine",
            v.swap_bytes()
        ))),
        v => Err(Error::unsupported(format!("GGUF version {v} is newer than pp-run knows; expected 2 or 3"))),
    }
}

/// A hint at the model beside it whose name is most like that of a file that is not there; empty if none is near.
pub fn nearest(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let like = names.filter(|n| n.ends_with(".gguf")).map(|n| (strsim::jaro_winkler(&n, &name), n));
    match like.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, found)) if likeness > 0.8 => format!(": did you mean '{}'?", shown(&found)),
        _ => String::new(),
    }
}

fn not_gguf(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(512)];
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let what = if start.iter().all(|&b| b == 0) {
        "only zeros: an unfinished download"
    } else if b"GGUF".starts_with(start) {
        "cut off inside the first four bytes"
    } else if text.starts_with("version https://git-lfs") {
        "a Git-LFS pointer, not the model itself: fetch it with 'git lfs pull'"
    } else if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") {
        "a web page: the download went to a page instead of the file"
    } else if matches!(start, [b'P', b'K', 3 | 5 | 7, ..]) {
        "a zip archive (perhaps a PyTorch checkpoint): convert the model to GGUF"
    } else if matches!(start, [0x80, 2..=5, ..]) {
        "a Python pickle (perhaps a PyTorch checkpoint): convert the model to GGUF"
    } else if is_safetensors(bytes) {
        "a safetensors file: convert the model to GGUF"
    } else if start.starts_with(b"lmgg")
        || start.starts_with(b"fmgg")
        || start.starts_with(b"tjgg")
        || start.starts_with(b"algg")
    {
        "a model in a GGML format from before GGUF: convert it again or find a GGUF file"
    } else if start.starts_with(b"FUGG") {
        "a byte-swapped GGUF file: pp-run reads little-endian ones"
    } else if start.starts_with(&[0x1f, 0x8b]) {
        "a gzip file: unpack it first"
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        "a zstd file: unpack it first"
    } else if start.starts_with(b"\x89HDF") {
        "an HDF5 file: convert the model to GGUF"
    } else if text.starts_with('{') {
        "a JSON text (perhaps an error message of a download)"
    } else {
        let magic: Vec<String> = start.iter().take(4).map(|b| format!("{b:02x}")).collect();
        return format!("not a GGUF file: it begins with the bytes {}, expected 47 47 55 46 ('GGUF')", magic.join(" "));
    };
    format!("not a GGUF file but {what}")
}

/// A safetensors file begins with the length of a JSON object and the object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}
