//! A text that comes in bytes.

/// Text out of bytes that come in pieces: characters are held back until they are whole, and bytes that are none become
/// U+FFFD.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    bytes: Vec<u8>,
}

impl Utf8Stream {
    /// What is whole characters after these bytes too; what never can be is U+FFFD.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.bytes.extend_from_slice(piece);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = used + invalid.len() == self.bytes.len();
            if at_end && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.bytes.drain(..used);
        text
    }

    /// What is left when no more comes.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_held_until_they_are_whole() {
        let mut s = Utf8Stream::default();
        let bytes = "a\u{1f44b}b".as_bytes();
        let shown: Vec<String> = bytes.iter().map(|b| s.push(&[*b])).collect();
        assert_eq!(shown, ["a", "", "", "", "\u{1f44b}", "b"]);
        assert_eq!(s.push(b"\xff\xe2\x82"), "\u{fffd}");
        assert_eq!(s.push(b"x"), "\u{fffd}x");
        assert_eq!(s.push(b"\xf0\x9f"), "");
        assert_eq!(s.finish(), "\u{fffd}");
    }
}
