//! Any bytes as a prompt cache; with their header, length and checksum put right too, so that what is inside is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::engine::prompt_cache::{Bytes, Memory, Origin, Saved, encode, parse};
use pp_run::graph::CacheType;
use pp_run::prune::IDENTITY_BYTES;

const N_CTX: usize = 8;
const N_VOCAB: usize = 300;

fn origin() -> Origin {
    Origin {
        fingerprint: 7,
        type_k: CacheType::Q8_0,
        type_v: CacheType::F16,
        flash_attn: true,
        is_long: false,
        memory: Memory::Cells {
            layers: vec![[34, 64]; 2],
            rot_k: 0,
            rot_v: 0,
            rope: Some(ggml::Rope {
                n_dims: 32,
                neox: false,
                n_ctx_orig: 64,
                freq_base: 10000.0,
                freq_scale: 1.0,
                ext_factor: 0.0,
                attn_factor: 1.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
            }),
            pruning: [0; IDENTITY_BYTES],
        },
    }
}

fn check(bytes: &[u8], origin: &Origin) {
    let Ok(Saved { tokens, memory }) = parse(bytes, origin, N_CTX, N_VOCAB) else { return };
    assert!(tokens.len() <= N_CTX && tokens.iter().all(|t| (0..N_VOCAB as i32).contains(t)), "tokens are of the vocabulary");
    let mut again = Vec::new();
    let memory = Bytes { n: memory.len(), write: &|out| out.write_all(memory) };
    encode(&mut again, origin, &tokens, memory).expect("memory takes all");
    assert!(again == bytes, "what is read is what was written");
}

fuzz_target!(|bytes: &[u8]| {
    let origin = origin();
    check(bytes, &origin);
    let summed = |bytes: &[u8]| [bytes, &xxhash_rust::xxh3::xxh3_64(bytes).to_le_bytes()].concat();
    check(&summed(bytes), &origin);
    // As many tokens as the bytes are enough for, behind a good header.
    let cell = 4 + 2 * (34 + 64);
    let tokens = vec![0; bytes.len() / cell];
    let mut whole = Vec::new();
    let cells = Bytes { n: tokens.len() * (cell - 4), write: &|_| Ok(()) };
    encode(&mut whole, &origin, &tokens, cells).expect("memory takes all");
    whole.truncate(whole.len() - 8 - 4 * tokens.len());
    whole.extend(&bytes[..tokens.len() * cell]);
    check(&summed(&whole), &origin);
});
