//! Text in pieces of any bytes: it comes out as if it had come at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::generate::Utf8Stream;

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut stream = Utf8Stream::default();
    let mut text: String = pieces.iter().map(|p| stream.push(p)).collect();
    text += &stream.finish();
    assert_eq!(text, String::from_utf8_lossy(&pieces.concat()));
});
