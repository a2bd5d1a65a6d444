//! Files that are broken, hostile, or not what they seem: always one line and an exit code, never a panic.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::forge::Forge;
use ggml::Type;
use pp_run::cli::options::{ModelOptions, RopeOptions};
use pp_run::error::{Kind, Result};
use pp_run::gguf::Gguf;
use pp_run::model::Model;
use pp_run::tokenizer::Tokenizer;

/// A file under construction, value by value.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, n: u32) -> Bytes {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Bytes {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Bytes {
        self.0.extend(bytes);
        self
    }

    fn str(self, s: &str) -> Bytes {
        self.u64(s.len() as u64).raw(s.as_bytes())
    }

    /// Magic, version 3 and the counts.
    fn header(n_tensors: u64, n_entries: u64) -> Bytes {
        Bytes::default().raw(b"GGUF").u32(3).u64(n_tensors).u64(n_entries)
    }

    /// A key with a type and what follows.
    fn entry(self, key: &str, ty: u32, value: Bytes) -> Bytes {
        self.str(key).u32(ty).raw(&value.0)
    }

    fn tensor(self, name: &str, ne: &[u64], ty: u32, offset: u64) -> Bytes {
        let with_dims = self.str(name).u32(ne.len() as u32);
        ne.iter().fold(with_dims, |b, &n| b.u64(n)).u32(ty).u64(offset)
    }

    fn data(mut self, n: usize) -> Bytes {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
}

const STR: u32 = 8;
const ARRAY: u32 = 9;
const U32: u32 = 4;
const BOOL: u32 = 7;

fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

#[track_caller]
fn refused(bytes: &[u8], kind: Kind, part: &str) {
    let error = open(bytes).map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part) && text.contains("model.gguf: "), "'{part}' in '{text}'");
    assert!(!text.contains('\n') && text.len() < 400, "one line: {text}");
}

#[test]
fn other_kinds_of_files_are_recognised() {
    let table: &[(&[u8], Kind, &str)] = &[
        (b"", Kind::Malformed, "empty"),
        (&[0; 4096], Kind::Malformed, "zeros"),
        (b"GG", Kind::Malformed, "cut off"),
        (b"GGUF\x03", Kind::Malformed, "not even a GGUF header"),
        (b"<!DOCTYPE html>\n<html>", Kind::Malformed, "web page"),
        (b"  <html lang=en>", Kind::Malformed, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", Kind::Malformed, "git lfs pull"),
        (b"PK\x03\x04zip", Kind::Malformed, "zip"),
        (b"\x80\x02}q\x00", Kind::Malformed, "pickle"),
        (b"\x02\0\0\0\0\0\0\0{}", Kind::Malformed, "safetensors"),
        (b"lmgg\x01\0\0\0", Kind::Malformed, "before GGUF"),
        (b"fmgg\x01\0\0\0", Kind::Malformed, "before GGUF"),
        (b"tjgg\x03\0\0\0", Kind::Malformed, "before GGUF"),
        (b"{\"error\": \"not found\"}", Kind::Malformed, "JSON"),
        (b"\x1f\x8b\x08", Kind::Malformed, "gzip"),
        (b"\x28\xb5\x2f\xfd", Kind::Malformed, "zstd"),
        (b"hello world", Kind::Malformed, "68 65 6c 6c"),
        (b"GGUF\x01\0\0\0", Kind::Unsupported, "version 1"),
        (b"GGUF\x00\0\0\0", Kind::Malformed, "version is 0"),
        (b"GGUF\x04\0\0\0", Kind::Unsupported, "version 4 is newer"),
        (b"GGUF\0\0\0\x03", Kind::Unsupported, "big-endian"),
        (b"FUGG\0\0\0\x03", Kind::Malformed, "byte-swapped"),
    ];
    for (bytes, kind, part) in table {
        refused(bytes, *kind, part);
    }
}

#[test]
fn broken_headers_are_named() {
    let h = Bytes::header;
    let one = || h(0, 1);
    let t = |b: Bytes| b.0;
    let table: Vec<(Vec<u8>, Kind, &str)> = vec![
        (t(Bytes::default().raw(b"GGUF").u32(3).u64(0)), Kind::Malformed, "truncated header"),
        (t(h(0, u64::MAX)), Kind::Malformed, "announces 18446744073709551615 metadata entries"),
        (t(h(u64::MAX, 0)), Kind::Malformed, "announces 18446744073709551615 tensors"),
        (t(one().u64(u64::MAX).raw(&[0; 64])), Kind::Malformed, "key 0 of the metadata is 18446744073709551615 bytes"),
        (t(one().entry("", U32, Bytes::default().u32(1))), Kind::Malformed, "is empty"),
        (t(one().u64(3).raw(b"a\xffb").u32(4).u32(1)), Kind::Malformed, "not UTF-8"),
        (t(one().entry("k", 13, Bytes::default().u64(0))), Kind::Malformed, "unknown type 13"),
        (t(one().entry("k", BOOL, Bytes::default().raw(&[2]))), Kind::Malformed, "expected 0 or 1"),
        (t(one().entry("k", STR, Bytes::default().u64(1 << 60))), Kind::Malformed, "truncated header"),
        (t(one().entry("k", ARRAY, Bytes::default().u32(ARRAY).u64(1))), Kind::Unsupported, "array of arrays"),
        (t(one().entry("k", ARRAY, Bytes::default().u32(U32).u64(1 << 62))), Kind::Malformed, "has room for"),
        (t(one().entry("k", ARRAY, Bytes::default().u32(STR).u64(2).str("a").u64(99))), Kind::Malformed, "string 1"),
        (
            t(h(0, 2).entry("k", U32, Bytes::default().u32(1)).entry("k", U32, Bytes::default().u32(1))),
            Kind::Malformed,
            "appears twice",
        ),
        (t(one().entry("general.alignment", U32, Bytes::default().u32(0))), Kind::Malformed, "general.alignment is 0"),
        (t(one().entry("general.alignment", U32, Bytes::default().u32(48))), Kind::Malformed, "power of two"),
        (t(one().entry("general.alignment", STR, Bytes::default().str("32"))), Kind::Malformed, "of type string"),
        (t(h(1, 0).tensor(&"n".repeat(64), &[1], 0, 0).data(4)), Kind::Malformed, "64 bytes long, expected at most 63"),
        (t(h(1, 0).tensor("", &[1], 0, 0).data(4)), Kind::Malformed, "has no name"),
        (t(h(1, 0).tensor("t", &[], 0, 0).data(64)), Kind::Malformed, "0 dimensions"),
        (t(h(1, 0).tensor("t", &[1; 5], 0, 0).data(64)), Kind::Malformed, "5 dimensions"),
        (t(h(1, 0).tensor("t", &[0], 0, 0).data(64)), Kind::Malformed, "dimension of 0"),
        (t(h(1, 0).tensor("t", &[1 << 40, 1 << 40], 0, 0).data(64)), Kind::Malformed, "63 bits"),
        (t(h(1, 0).tensor("t", &[1 << 61], 0, 0).data(64)), Kind::Malformed, "63 bits"),
        (t(h(1, 0).tensor("t", &[32], 4, 0).data(64)), Kind::Unsupported, "Q4_2, which ggml has removed"),
        (t(h(1, 0).tensor("t", &[32], 9999, 0).data(64)), Kind::Unsupported, "type 9999"),
        (t(h(1, 0).tensor("t", &[33], 2, 0).data(64)), Kind::Malformed, "multiple of 32 for type Q4_0"),
        (t(h(1, 0).tensor("t", &[8], 0, 8).data(64)), Kind::Malformed, "at offset 8"),
        (t(h(1, 0).tensor("t", &[8], 0, u64::MAX - 31).data(64)), Kind::Malformed, "largest possible file"),
        (t(h(1, 0).tensor("t", &[64], 0, 0).data(100)), Kind::Malformed, "(156 missing)"),
        (t(h(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64)), Kind::Malformed, "appears twice"),
        (t(h(2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64)), Kind::Malformed, "overlap"),
    ];
    for (bytes, kind, part) in &table {
        refused(bytes, *kind, part);
    }
    assert!(open(&h(0, 0).0).is_ok(), "a file may hold nothing");
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Gguf::open(&dir.path().join("none")).unwrap_err().kind(), Kind::Input);
    assert_eq!(Gguf::open(dir.path()).unwrap_err().kind(), Kind::Input);
    assert_eq!(Gguf::open(Path::new("/dev/null")).unwrap_err().kind(), Kind::Input);
}

fn forged() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forged.gguf");
    Forge { n_layer: 1, n_vocab: 300, ..Forge::tiny(Type::Q4_0, 4, 2) }.write(&path);
    fs::read(&path).unwrap()
}

/// Opens, loads the tokenizer and the weights, as the program does.
fn use_model(bytes: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let gguf = Arc::new(Gguf::open(&path)?);
    Model::load(gguf.clone(), &ModelOptions::new(&path), &RopeOptions::default(), 1, &mut |_| {
        ControlFlow::Continue(())
    })?;
    let tokenizer = Tokenizer::load(&gguf)?;
    tokenizer.encode("Hello, w\u{f6}rld <s> \u{1f44b}", true, true)?;
    (0..tokenizer.n_vocab() as i32).for_each(|t| drop(tokenizer.piece(t, true)));
    Ok(())
}

/// `bytes` with the first occurrence of one text replaced by another of the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).expect("the text is there");
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to);
    out
}

/// The value right behind a key and its type replaced.
fn with_value(bytes: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).expect("the key is there") + key.len() + 4;
    let mut out = bytes.to_vec();
    out[at..at + value.len()].copy_from_slice(value);
    out
}

#[test]
fn metadata_and_tensors_that_do_not_fit_are_refused() {
    let good = forged();
    use_model(&good).unwrap();
    let n = |n: u32| n.to_le_bytes();
    let table: Vec<(Vec<u8>, Kind, &str)> = vec![
        (replaced(&good, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lamma"), Kind::Unsupported, "does not know"),
        (with_value(&good, "llama.block_count", &n(0)), Kind::Malformed, "block_count is 0"),
        (with_value(&good, "llama.block_count", &n(u32::MAX)), Kind::Malformed, "expected 1 to"),
        (with_value(&good, "llama.block_count", &n(2)), Kind::Malformed, "'blk.1."),
        (with_value(&good, "llama.embedding_length", &n(0)), Kind::Malformed, "embedding_length is 0"),
        (with_value(&good, "llama.embedding_length", &n(512)), Kind::Malformed, "expected"),
        (with_value(&good, "llama.feed_forward_length", &n(1024)), Kind::Malformed, "expected [256, 1024]"),
        (with_value(&good, "llama.attention.head_count", &n(0)), Kind::Malformed, "head_count is 0"),
        (with_value(&good, "llama.attention.head_count", &n(3)), Kind::Malformed, "multiple of head_count_kv"),
        (with_value(&good, "llama.attention.head_count_kv", &n(1)), Kind::Malformed, "attn_k"),
        (with_value(&good, "llama.rope.dimension_count", &n(32)), Kind::Malformed, "rope.dimension_count is 32"),
        (with_value(&good, "llama.context_length", &n(0)), Kind::Malformed, "context_length is 0"),
        (
            with_value(&good, "llama.attention.layer_norm_rms_epsilon", &f32::NAN.to_le_bytes()),
            Kind::Malformed,
            "epsilon is NaN",
        ),
        (
            replaced(&good, b"llama.block_count", b"llama.block_cnuot"),
            Kind::Malformed,
            "'llama.block_count' is missing",
        ),
        (
            replaced(&good, b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
            Kind::Malformed,
            "'blk.0.attn_q.weight' is missing",
        ),
        (
            replaced(&good, b"\x0d\0\0\0\0\0\0\0output.weight", b"\x0d\0\0\0\0\0\0\0outpux.weight"),
            Kind::Unsupported,
            "'outpux.weight' that pp-run does not know",
        ),
        (with_value(&good, "tokenizer.ggml.bos_token_id", &n(300)), Kind::Malformed, "bos_token_id is 300"),
        (with_value(&good, "tokenizer.ggml.eos_token_id", &n(u32::MAX)), Kind::Malformed, "eos_token_id is 4294967295"),
        (replaced(&good, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), Kind::Malformed, "no tokenizer"),
        (replaced(&good, b"tokenizer.ggml.model", b"tokenizer.ggml.modle"), Kind::Malformed, "no tokenizer"),
        (replaced(&good, b"<0x41>", b"<0x4X>"), Kind::Malformed, "<0x41>"),
        (replaced(&good, b"<0x42>", b"<0x41>"), Kind::Malformed, "twice"),
    ];
    for (bytes, kind, part) in &table {
        let error = use_model(bytes).unwrap_err();
        let text = error.to_string();
        assert!(
            error.kind() == *kind && text.contains(part) && !text.contains('\n'),
            "'{part}' in {:?} '{text}'",
            error.kind()
        );
    }
}

/// Every way of cutting the header and a coarse one of cutting the data is an error; so the reader never runs off.
#[test]
fn truncated_files_are_errors() {
    let good = forged();
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("cut.gguf");
    fs::write(&path, &good).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let data = gguf.position(&gguf.tensors()[0]);
    let ends = (0..data).step_by(7).chain((data..good.len()).step_by(10_007));
    for end in ends {
        let error = open(&good[..end]).map(|_| ()).unwrap_err();
        assert!(matches!(error.kind(), Kind::Malformed | Kind::Unsupported), "{end}: {error}");
    }
}

/// One flipped bit anywhere in the header: a model that still works, or one line. Nothing else.
#[test]
fn flipped_bits_never_panic() {
    let good = forged();
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("flip.gguf");
    fs::write(&path, &good).unwrap();
    let data = {
        let gguf = Gguf::open(&path).unwrap();
        gguf.position(&gguf.tensors()[0])
    };
    let mut refused = 0;
    for at in (0..data).step_by(5) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        if let Err(e) = use_model(&bytes) {
            refused += 1;
            let text = e.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{at}: {text}");
            assert_ne!(e.kind(), Kind::Internal, "{at}: {text}");
        }
    }
    assert!(refused > 100, "{refused}");
}
