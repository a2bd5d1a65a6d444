//! Vocabularies of any texts, numbers and merges, and texts for them: libllama must not see what it aborts at.
#![no_main]

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../common/forge.rs"]
mod forge;

use std::path::Path;

use arbitrary::Arbitrary;
use forge::{ARRAY, Doc, F32, I32, STRING, U32, array, string};
use libfuzzer_sys::fuzz_target;
use pp_run::gguf::Gguf;
use pp_run::tokenizer::Tokenizer;

#[derive(Debug, Arbitrary)]
struct Input {
    model: u8,
    pre: u8,
    tokens: Vec<Vec<u8>>,
    bytes: bool,
    scores: Option<Vec<f32>>,
    types: Option<Vec<i8>>,
    merges: Vec<Vec<u8>>,
    special: Vec<(u8, u16)>,
    flags: Vec<(u8, bool)>,
    text: String,
}

const MODELS: [&str; 7] = ["llama", "gpt2", "gemma4", "bert", "t5", "rwkv", "plamo2"];
const PRE: [&str; 14] = [
    "default",
    "llama-bpe",
    "gpt-2",
    "smollm",
    "deepseek-llm",
    "qwen2",
    "qwen35",
    "gpt-4o",
    "tekken",
    "dbrx",
    "lfm2",
    "smaug-bpe",
    "kimi-k2",
    "gemma4",
];
const SPECIAL: [&str; 8] = ["bos", "eos", "eot", "eom", "unknown", "padding", "fim_pre", "fim_suf"];
const FLAGS: [&str; 5] = ["add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces"];

fuzz_target!(|input: Input| {
    let mut doc = Doc::default();
    doc.str("general.architecture", "llama");
    let model = MODELS[usize::from(input.model) % MODELS.len()];
    doc.str("tokenizer.ggml.model", model);
    doc.str("tokenizer.ggml.pre", PRE[usize::from(input.pre) % PRE.len()]);
    let mut tokens = input.tokens;
    if input.bytes {
        let byte = |b: u8| if model == "rwkv" { format!("\\x{b:02x}") } else { format!("<0x{b:02X}>") };
        tokens.extend((0..=255u8).map(|b| byte(b).into_bytes()));
    }
    let n = tokens.len();
    doc.set("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens.iter().map(string)));
    // As many as tokens, unless there are none at all.
    if let Some(mut scores) = input.scores {
        scores.resize(n, -1.0);
        doc.set("tokenizer.ggml.scores", ARRAY, array(F32, scores.iter().map(|s| s.to_le_bytes().to_vec())));
    }
    if let Some(mut types) = input.types {
        types.resize(n, 1);
        doc.set("tokenizer.ggml.token_type", ARRAY, array(I32, types.iter().map(|t| i32::from(*t).to_le_bytes().to_vec())));
    }
    doc.set("tokenizer.ggml.merges", ARRAY, array(STRING, input.merges.iter().map(string)));
    for (i, id) in input.special {
        doc.set(&format!("tokenizer.ggml.{}_token_id", SPECIAL[usize::from(i) % SPECIAL.len()]), U32, u32::from(id).to_le_bytes());
    }
    for (i, on) in input.flags {
        doc.set(&format!("tokenizer.ggml.{}", FLAGS[usize::from(i) % FLAGS.len()]), forge::BOOL, [u8::from(on)]);
    }
    let Ok(gguf) = Gguf::of_bytes(Path::new("model.gguf"), &doc.bytes()) else { return };
    let Ok(tokenizer) = Tokenizer::load(&gguf) else { return };
    for (add, parse) in [(true, true), (false, false)] {
        let ids = tokenizer.encode(&input.text, add, parse).expect("short texts have tokens");
        assert!(ids.iter().all(|&t| usize::try_from(t).is_ok_and(|t| t < tokenizer.n_vocab())), "tokens are of the vocabulary");
        ids.iter().for_each(|&t| drop(tokenizer.piece(t, true)));
    }
    (0..tokenizer.n_vocab() as i32).for_each(|t| drop((tokenizer.piece(t, false), tokenizer.is_eog(t))));
});
