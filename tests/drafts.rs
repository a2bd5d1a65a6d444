//! Drafts: tokens that are computed together are computed as one by one, and an answer with drafts is the answer without.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::forge::{Arch, Doc, Forge, of_each_kind};
use common::{load_for, nmse, session, smollm2, tokenizer, tokens_of, turn};
use ggml::Type;
use pp_run::engine::{Options as ContextOptions, Session};
use pp_run::generate::{DraftModel, Drafts, Guide, Limits, Predict, Pull, StopReason};
use pp_run::gguf::Gguf;
use pp_run::graph::CacheType;
use pp_run::model::{Model, RopeOptions};
use pp_run::sampler::{Dry, Mirostat, Options as SamplingOptions, Sampler};
use pp_run::tokenizer::{Token, Tokenizer};
use pp_run::weights::Kernels;
use serde_json::Value;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// Some tokens of a random model.
fn text(n: usize) -> Vec<Token> {
    (0..n).map(|i| ((i * 101 + i * i + 7) % 290) as Token).collect()
}

fn read<'m>(model: &'m Model, options: &ContextOptions, text: &[Token]) -> Session<'m> {
    let mut session = session(model, options);
    session.sync(text, &mut |_, _| {}).unwrap();
    session
}

fn load_native(path: &Path) -> Model {
    load_for(path, Kernels::Native, RopeOptions::default())
}

/// Writes a text with drafts, of which a part is right, and one by one. Returns the largest error of any logits, and whether they are all the
/// same bits.
fn compare(model: &Model, options: &ContextOptions) -> (f64, bool) {
    // The number of cells that a graph looks at changes on the way.
    let (text, mut at) = (text(300), 240);
    let mut alone = read(model, options, &text[..at]);
    let mut drafted = read(model, options, &text[..at]);
    let (mut worst, mut is_same) = (0.0f64, true);
    for (n_draft, n_right) in [(1, 1), (7, 7), (7, 0), (0, 0), (3, 1), (7, 6), (2, 2), (5, 0), (4, 4), (6, 3), (1, 0)] {
        let (right, wrong) = (&text[at + 1..][..n_right], vec![289; n_draft - n_right]);
        let n = drafted.decode_draft(text[at], &[right, &wrong].concat()).unwrap();
        assert_eq!((n, drafted.n_past()), (n_draft, at + 1 + n_draft));
        for i in 0..=n_right {
            alone.decode(text[at + i]).unwrap();
            worst = worst.max(nmse(drafted.draft_logits(i), alone.logits()));
            is_same &= bits(drafted.draft_logits(i)) == bits(alone.logits());
        }
        drafted.keep_draft(n_right);
        assert_eq!(drafted.tokens(), alone.tokens());
        assert_eq!(drafted.logits(), drafted.draft_logits(n_right));
        at += 1 + n_right;
    }
    alone.pause();
    drafted.pause();
    (worst, is_same)
}

#[test]
fn tokens_of_a_draft_are_computed_as_one_by_one_and_wrong_ones_leave_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut n_exact = 0;
    for (name, forge) in of_each_kind() {
        forge.write(&path);
        let model = load_native(&path);
        for cache in [CacheType::F16, CacheType::F32, CacheType::Q8_0, CacheType::Q4_1] {
            let options =
                ContextOptions { n_ctx: Some(512), cache_type_k: cache, cache_type_v: cache, ..ContextOptions::new(1) };
            let (worst, is_same) = compare(&model, &options);
            let is_exact = session(&model, &options).drafts_are_exact();
            assert!(is_same || !is_exact, "{name}, cache {cache:?}: NMSE {worst:e}");
            n_exact += usize::from(is_exact);
        }
    }
    // All but a type that our kernels do not read in place, floats, and models of experts.
    assert_eq!(n_exact, 14 * 4);
}

/// Answers to the same prompt.
struct Case<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: &'a [Token],
    n_ctx: u32,
    sampling: SamplingOptions,
    limits: Limits,
    /// Pieces after which the answer is interrupted
    interrupt_after: usize,
}

/// An answer, and what it leaves behind.
#[derive(Debug, PartialEq)]
struct Outcome {
    text: String,
    tokens: Vec<Token>,
    stop: StopReason,
    /// Tokens in the cache
    held: Vec<Token>,
    /// Bits of the last logits
    logits: Vec<u32>,
}

impl<'a> Case<'a> {
    fn new(model: &'a Model, tokenizer: &'a Tokenizer, prompt: &'a [Token], n: u64) -> Case<'a> {
        Case {
            model,
            tokenizer,
            prompt,
            n_ctx: 1024,
            sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
            limits: Limits { predict: Predict::AtMost(n), stop: Vec::new(), special: false },
            interrupt_after: usize::MAX,
        }
    }

    /// The answer; and tokens of drafts, and those that were accepted.
    fn run(&self, drafts: Option<Drafts>) -> (Outcome, [usize; 2]) {
        let options = ContextOptions { n_ctx: Some(self.n_ctx), ..ContextOptions::new(1) };
        let mut session = read(self.model, &options, self.prompt);
        let n_vocab = self.tokenizer.n_vocab();
        let mut sampler =
            Sampler::new(&self.sampling, n_vocab, session.n_ctx(), &self.tokenizer.eog_tokens(), Some(self.tokenizer));
        self.prompt.iter().for_each(|&t| sampler.accept(t));
        let interrupt = Arc::new(AtomicBool::new(false));
        let limits = self.limits.clone();
        let mut pull =
            Pull::new(&mut session, self.tokenizer, sampler, limits, Guide::default(), drafts, interrupt.clone());
        let mut text = String::new();
        for (i, piece) in pull.by_ref().enumerate() {
            text += &piece.unwrap();
            interrupt.store(i + 1 >= self.interrupt_after, Ordering::Relaxed);
        }
        let drafted = pull.drafted().map_or([0, 0], |d| [d.drafted, d.accepted]);
        let (tokens, stop) = pull.finish();
        session.pause();
        let (held, logits) = (session.tokens().to_vec(), bits(session.logits()));
        (Outcome { text, tokens, stop, held, logits }, drafted)
    }

    /// Checks that drafts change nothing. Returns the answer; and tokens of drafts, and those that were accepted.
    #[track_caller]
    fn check(&self) -> (Outcome, [usize; 2]) {
        let (without, _) = self.run(None);
        let (with, drafted) = self.run(Some(Drafts::by_ngrams(0.25)));
        assert_eq!(with, without);
        (without, drafted)
    }
}

impl Case<'_> {
    /// [`Case::check`] with drafts by a model, a token of which is said to cost so much.
    #[track_caller]
    fn check_with(&self, drafts: &Model, cost: f64) -> (Outcome, [usize; 2]) {
        let (without, _) = self.run(None);
        let options = ContextOptions { n_ctx: Some(self.n_ctx), ..ContextOptions::new(1) };
        let mut model = DraftModel::new(session(drafts, &options), drafts.n_vocab().min(self.model.n_vocab()), cost);
        let (with, drafted) = self.run(Some(Drafts::by_model(&mut model, 0.25)));
        assert_eq!(with, without);
        // What it remembers of one answer serves the next one.
        let (again, drafted_again) = self.run(Some(Drafts::by_model(&mut model, 0.25)));
        assert_eq!(again, without);
        assert_eq!(drafted, drafted_again);
        (without, drafted)
    }
}

/// A model as small as there can be, changed, and its tokenizer. Attention adds nothing, so that what comes next depends on the last token
/// only: it soon repeats itself.
fn smallest(dir: &Path, change: impl Fn(&mut Doc)) -> (Model, Tokenizer) {
    without_attention(dir, Forge::smallest(), change)
}

fn without_attention(dir: &Path, forge: Forge, change: impl Fn(&mut Doc)) -> (Model, Tokenizer) {
    let path = dir.join("model.gguf");
    let mut doc = forge.doc();
    for il in 0..forge.n_layer {
        doc.tensor(&format!("blk.{il}.attn_output.weight")).data.fill(0);
    }
    change(&mut doc);
    std::fs::write(&path, doc.bytes()).unwrap();
    let tokenizer = Tokenizer::load(&Gguf::open(&path).unwrap()).unwrap();
    (load_native(&path), tokenizer)
}

#[test]
fn answers_of_random_models_are_the_same() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let prompt = [text(30), text(30)].concat();
    let mut all = [0, 0];
    for arch in Arch::ALL {
        Forge { arch, ..Forge::tiny(Type::Q4_0, 4, 2) }.write(&path);
        let tokenizer = Tokenizer::load(&Gguf::open(&path).unwrap()).unwrap();
        let model = load_native(&path);
        let (_, drafted) = Case::new(&model, &tokenizer, &prompt, 150).check();
        all = [all[0] + drafted[0], all[1] + drafted[1]];
    }
    assert!(0 < all[1] && all[1] < all[0], "{all:?}");
}

/// Samplers that remember what they drew, or draw numbers of their own, in turn.
fn with_state(i: usize) -> SamplingOptions {
    let default = SamplingOptions::default;
    match i / 9 % 6 {
        0 => SamplingOptions { mirostat: Mirostat::One, mirostat_tau: 1.0, ..default() },
        1 => SamplingOptions { mirostat: Mirostat::Two, mirostat_tau: 1.0, ..default() },
        2 => SamplingOptions { adaptive_target: 0.6, ..default() },
        3 => SamplingOptions { xtc_probability: 0.2, ..default() },
        4 => SamplingOptions { dry: Dry { multiplier: 0.2, base: 1.01, ..default().dry }, ..default() },
        _ => default(),
    }
}

/// Some hundred thousand draws: each is from the same logits with the same state of the sampler, so they are distributed alike.
#[test]
fn draws_are_the_same() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = smallest(dir.path(), |_| {});
    let prompt = text(20);
    let mut all = [0, 0];
    let mut n = 0;
    for seed in 0..60 {
        let sampling = SamplingOptions {
            seed: Some(seed),
            temperature: [0.05, 0.2, 1.0][seed as usize % 3],
            top_k: [2, 5, 40][seed as usize / 3 % 3],
            repeat_penalty: [1.0, 1.02][seed as usize % 2],
            ignore_eos: true,
            ..with_state(seed as usize)
        };
        let (answer, drafted) = Case { sampling, n_ctx: 2048, ..Case::new(&model, &tokenizer, &prompt, 2000) }.check();
        n += answer.tokens.len();
        all = [all[0] + drafted[0], all[1] + drafted[1]];
    }
    assert!(n == 120_000 && 1000 < all[1] && all[1] + 1000 < all[0], "{all:?} of {n}");
}

/// A model drafts for itself and for another one, greedily and with draws.
#[test]
fn drafts_by_a_model_change_nothing() {
    let _turn = turn();
    let (dirs, prompt) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], text(20));
    let (model, tokenizer) = smallest(dirs[0].path(), |_| {});
    let (other, _) = smallest(dirs[1].path(), |doc| {
        // What this one says is another token.
        let output = &mut doc.tensor("output.weight").data;
        let row = output.len() / tokenizer.n_vocab();
        output.rotate_left(row);
    });
    let mut all = [[0; 2]; 2];
    let mut n = 0;
    for seed in 0..16 {
        let sampling = SamplingOptions {
            seed: Some(seed),
            temperature: [0.0, 0.05, 0.2, 1.0][seed as usize % 4],
            ignore_eos: true,
            ..with_state(seed as usize)
        };
        let case = Case { sampling, n_ctx: 2048, ..Case::new(&model, &tokenizer, &prompt, 2000) };
        for (drafts, all) in [&model, &other].into_iter().zip(&mut all) {
            let (answer, drafted) = case.check_with(drafts, 0.01);
            n += answer.tokens.len();
            *all = [all[0] + drafted[0], all[1] + drafted[1]];
        }
    }
    let [itself, other] = all;
    assert!(n == 64_000 && 500 < itself[1] && itself[1] < itself[0], "{all:?} of {n}");
    assert!(100 < other[0] && other[1] < other[0] / 10, "{all:?}");
}

/// Some vocabularies are padded: tokens that one of the models does not have are neither read nor guessed by the other.
#[test]
fn tokens_that_one_model_lacks_are_not_drafted() {
    let _turn = turn();
    let (dirs, prompt) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], text(20));
    let (model, tokenizer) = smallest(dirs[0].path(), |_| {});
    let (padded, padded_tokenizer) =
        without_attention(dirs[1].path(), Forge { n_vocab: 420, ..Forge::smallest() }, |_| {});
    let mut n = 0;
    for seed in 0..8 {
        let sampling = SamplingOptions {
            seed: Some(seed),
            temperature: seed as f32 / 7.0,
            ignore_eos: true,
            ..Default::default()
        };
        let case = |model, tokenizer| Case { sampling: sampling.clone(), ..Case::new(model, tokenizer, &prompt, 300) };
        let (answer, _) = case(&padded, &padded_tokenizer).check_with(&model, 0.01);
        n += answer.tokens.iter().filter(|&&t| t as usize >= tokenizer.n_vocab()).count();
        case(&model, &tokenizer).check_with(&padded, 0.01);
    }
    assert!(n > 0, "some are drawn");
}

#[test]
fn answers_end_where_they_would_without() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = smallest(dir.path(), |_| {});
    let start = text(20);
    // What the model says goes on as it begins: all of it is in the prompt.
    let (said, _) = Case::new(&model, &tokenizer, &start, 200).check();
    let prompt = [&start[..], &said.tokens].concat();
    let case = |n| Case::new(&model, &tokenizer, &prompt, n);
    let (answer, drafted) = case(60).check();
    assert!(drafted[1] > 30, "{drafted:?}");

    for n in 0..30 {
        assert_eq!(case(n).check().0.stop, StopReason::Limit);
        let n_ctx = (prompt.len() as u64 + n) as u32;
        let fills = Limits { predict: Predict::FillContext, stop: Vec::new(), special: false };
        let (filled, _) = Case { n_ctx, limits: fills, ..case(0) }.check();
        assert_eq!((filled.stop, filled.held.len()), (StopReason::ContextFull, n_ctx as usize));
    }

    let chars: Vec<char> = answer.text.chars().collect();
    for (i, n) in [(5, 1), (17, 3), (20, 8), (31, 15)] {
        let stop = vec![chars[i..i + n].iter().collect::<String>()];
        let limits = Limits { stop, ..case(60).limits };
        let (stopped, _) = Case { limits, ..case(60) }.check();
        assert!(matches!(stopped.stop, StopReason::StopString(_)), "{stopped:?}");
    }

    // Each token that it says is the one that ends a text, in turn.
    for i in [3, 12, 25, 40] {
        let token = answer.tokens[i];
        let (model, tokenizer) = smallest(dir.path(), |doc| doc.u32("tokenizer.ggml.eos_token_id", token as u32));
        let (ended, _) = Case { prompt: &prompt, ..Case::new(&model, &tokenizer, &prompt, 60) }.check();
        assert_eq!((ended.stop, ended.tokens.last()), (StopReason::EndOfText, Some(&token)));
    }
}

#[test]
fn an_interrupted_answer_is_a_beginning_of_it() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = smallest(dir.path(), |_| {});
    let prompt = text(20);
    let (answer, _) = Case::new(&model, &tokenizer, &prompt, 200).check();
    for n in [1, 10, 30] {
        let case = Case { interrupt_after: n, ..Case::new(&model, &tokenizer, &prompt, 200) };
        let (part, _) = case.run(Some(Drafts::by_ngrams(0.25)));
        assert_eq!(part.stop, StopReason::Interrupted);
        assert!(part.tokens.len() < 200 && answer.tokens.starts_with(&part.tokens));
        // The last token was drawn, and is not decoded.
        assert_eq!(part.held, [&prompt, &part.tokens[..part.tokens.len() - 1]].concat());
    }
}

#[test]
fn smollm2_says_the_same() {
    let _turn = turn();
    let (_, tokenizer) = tokenizer();
    let model = load_native(&smollm2());
    let paragraph = "The harbour was built in 1874, when the railway reached the coast. Before that, boats were pulled up on the \
                     beach, and fish was carried over the hills on mules.";
    let prompt = format!("<|im_start|>user\nRepeat this text:\n\n{paragraph}<|im_end|>\n<|im_start|>assistant\n");
    let prompt = tokens_of(&tokenizer, &prompt);
    let (answer, drafted) = Case::new(&model, &tokenizer, &prompt, 100).check();
    assert!(drafted[1] > 15, "{drafted:?} in '{}'", answer.text);
    let sampling = SamplingOptions { seed: Some(3), repeat_penalty: 1.1, presence_penalty: 0.1, ..Default::default() };
    Case { sampling, ..Case::new(&model, &tokenizer, &prompt, 100) }.check();
}

fn pp_run(args: &[&str]) -> Output {
    let model = smollm2();
    let mut command = common::pp_run();
    command.args(["-m", model.to_str().unwrap(), "--temp", "0", "--kernels", "native"]).args(args);
    command.stdin(Stdio::null()).env("PP_ARG_THREADS", "1").output().unwrap()
}

#[test]
fn the_program_drafts_unless_told_otherwise() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let prompt = "one two three four five six seven eight. ".repeat(6);
    let run = |more: &[&str]| {
        let output = pp_run(&[&["-no-cnv", "-p", &prompt, "-n", "40"], more].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        (String::from_utf8(output.stdout).unwrap(), stderr)
    };
    let (with, line) = run(&["--prompt-cache", &file("with"), "--prompt-cache-all"]);
    assert!(line.contains("| drafts ") && line.contains(" tokens accepted, "), "{line}");
    let (without, line) = run(&["--prompt-cache", &file("without"), "--prompt-cache-all", "--draft", "off"]);
    assert!(!line.contains("drafts"), "{line}");
    assert_eq!(with, without);
    assert!(fs::read(file("with")).unwrap() == fs::read(file("without")).unwrap(), "the same tokens and cells");

    let json =
        |more: &[&str]| serde_json::from_str::<Value>(&run(&[&["--output-format", "json"], more].concat()).0).unwrap();
    let (with, without) = (json(&["--draft", "ngram"]), json(&["--draft", "off"]));
    assert_eq!((&with["text"], &with["logits_hash"]), (&without["text"], &without["logits_hash"]));
    assert!(without["draft"].is_null());
    let [drafted, accepted, steps] = ["drafted", "accepted", "steps"].map(|n| with["draft"][n].as_u64().unwrap());
    assert!(0 < accepted && accepted <= drafted, "{with}");
    assert_eq!(steps + accepted, 39, "each token but the last takes a step, or is one of a draft");

    // ggml's kernels round otherwise for several tokens, and reduced weights are for one token at a time.
    assert!(json(&["--kernels", "ggml"])["draft"].is_null());
    assert!(json(&["--kernels", "ggml", "--draft", "ngram"])["draft"].is_object());
    let pruned = ["--prune", "0.3", "--prune-answer", "0.3", "--prune-min-tokens", "2"];
    assert!(json(&pruned)["draft"].is_null());
    assert!(json(&pruned[..2])["draft"].is_object());
}

#[test]
fn the_program_drafts_by_a_small_model() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // Layers add nothing, so that both say what the embeddings alone do.
    let doc = |forge: Forge| {
        let mut doc = forge.doc();
        for (il, name) in (0..forge.n_layer).flat_map(|il| [(il, "attn_output"), (il, "ffn_down")]) {
            doc.tensor(&format!("blk.{il}.{name}.weight")).data.fill(0);
        }
        doc
    };
    let mut small = doc(Forge::smallest());
    let mut large = doc(Forge { n_layer: 8, n_ff: 4096, ..Forge::smallest() });
    // Larger logits make both sure of what they say, so that drafts pay whatever a token of one costs on this processor.
    for weight in small.tensor("output_norm.weight").data.as_chunks_mut().0 {
        *weight = (8.0 * f32::from_le_bytes(*weight)).to_le_bytes();
    }
    for name in ["token_embd.weight", "output_norm.weight", "output.weight"] {
        large.tensor(name).data.clone_from(&small.tensor(name).data);
    }
    fs::write(path("small"), small.bytes()).unwrap();
    fs::write(path("large"), large.bytes()).unwrap();
    let json = |more: &[&str]| {
        let mut command = common::pp_run();
        command.args(["-m", &path("large"), "-p", "hello", "-no-cnv", "-n", "60", "--temp", "0", "--ignore-eos"]);
        command.args(["--kernels", "native", "--output-format", "json"]).args(more).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (with, without) = (json(&["--draft", &format!("model:{}", path("small"))]), json(&["--draft", "off"]));
    assert_eq!((&with["text"], &with["logits_hash"]), (&without["text"], &without["logits_hash"]));
    let [drafted, accepted] = ["drafted", "accepted"].map(|n| with["draft"][n].as_u64().unwrap());
    assert!(accepted > 4 && 10 * accepted >= 9 * drafted, "{with}");
    assert_eq!(json(&["-md", &path("small")])["draft"], with["draft"], "llama.cpp's flag");
    assert!(json(&["-md", &path("small"), "--draft", "off"])["draft"].is_null(), "the last flag counts");
    assert!(json(&["-md", &path("large")])["draft"].is_null(), "it is as large as the one that answers");
}

#[test]
fn a_model_that_drafts_has_the_same_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    Forge::smallest().write(&path);
    let fails = |draft: &str, code: i32, why: &str| {
        let output = pp_run(&["-p", "x", "-n", "1", "--draft", draft]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && stderr.contains(why), "{stderr}");
    };
    fails(
        &format!("model:{}", path.display()),
        2,
        "model.gguf: --draft: this model's vocabulary is another than that of -m: ",
    );
    fails(&format!("model:{}", dir.path().join("none.gguf").display()), 66, "none.gguf");
    fails("model:", 2, "--draft model:FILE");
}
