//! Prompt caches: what is restored computes as what was saved; what is damaged, or of something else, is not used; and what is there is
//! never half-written.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::forge::Forge;
use common::{load, load_for, pp_run, session, smollm2};
use ggml::Type;
use pp_run::engine::Options as ContextOptions;
use pp_run::engine::Session;
use pp_run::engine::prompt_cache::Found;
use pp_run::error::Kind;
use pp_run::graph::CacheType;
use pp_run::model::{Model, RopeOptions, RopeScaling};
use pp_run::prune::IDENTITY_BYTES;
use pp_run::weights::Kernels;
use xxhash_rust::xxh3::xxh3_64;

/// Where a file says how its tokens were pruned, and bytes before the tokens (src/engine/prompt_cache.rs).
const PRUNING: usize = 112;
const HEADER: usize = PRUNING + IDENTITY_BYTES;

fn no_progress(_: usize, _: usize) {}

fn tokens(n: usize, seed: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 31 + i * i * seed) % 290) as i32).collect()
}

fn context(type_k: CacheType, type_v: CacheType, flash_attn: bool) -> ContextOptions {
    ContextOptions {
        n_ctx: Some(1024),
        cache_type_k: type_k,
        cache_type_v: type_v,
        flash_attn,
        ..ContextOptions::new(1)
    }
}

/// A folder with a model as small as there can be.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    Forge::smallest().write(&path);
    (dir, path)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(!logits.is_empty());
    logits.iter().map(|l| l.to_bits()).collect()
}

#[test]
fn what_is_restored_computes_as_what_was_saved() {
    use CacheType::{BF16, F16, F32, Iq4Nl, Q5_1, Q8_0};
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("model.gguf"), dir.path().join("cache"));
    // Heads of 64, which a q8_0 cache rotates.
    Forge { n_vocab: 300, ..Forge::tiny(Type::Q4_0, 4, 2) }.write(&path);
    let (prompt, other) = (tokens(400, 1), tokens(700, 2));
    for (type_k, type_v, flash_attn) in [
        (F16, F16, true),
        (F16, F16, false),
        (F32, F32, true),
        (F32, F32, false),
        (Q8_0, Q8_0, true),
        (Q8_0, F16, false),
        (F32, Q8_0, true),
        (Q5_1, Iq4Nl, true),
        (BF16, BF16, false),
    ] {
        let what = format!("{type_k:?} {type_v:?} {flash_attn:?}");
        let options = context(type_k, type_v, flash_attn);
        let model = load(&path);
        let mut saved = session(&model, &options);
        assert_eq!(saved.restore_state(&file).unwrap(), Found::Nothing, "{what}");
        saved.sync(&prompt, &mut no_progress).unwrap();
        saved.save_state(&file, prompt.len()).unwrap();

        let larger = ContextOptions { n_ctx: Some(2000), ..options.clone() };
        let mut fresh = session(&model, &larger);
        let mut used = session(&model, &options);
        used.sync(&other, &mut no_progress).unwrap();
        for restored in [&mut fresh, &mut used] {
            assert_eq!(restored.restore_state(&file).unwrap(), Found::Restored, "{what}");
            assert_eq!((restored.tokens(), restored.logits()), (&prompt[..], &[][..]), "{what}");
        }
        // Past the next step of cells, so that some are read that were never written.
        for (i, &token) in other[..200].iter().enumerate() {
            saved.decode(token).unwrap();
            for restored in [&mut fresh, &mut used] {
                restored.decode(token).unwrap();
                assert_eq!(bits(restored.logits()), bits(saved.logits()), "{what}, token {i}");
            }
        }
        // And the file says the same of what it was read into.
        let bytes = fs::read(&file).unwrap();
        fresh.save_state(&file, prompt.len()).unwrap();
        assert!(bytes == fs::read(&file).unwrap(), "{what}");

        // A part of it, and a prompt that goes on otherwise.
        saved.save_state(&file, 300).unwrap();
        let longer = [&prompt[..300], &other[..150]].concat();
        let mut cold = session(&model, &options);
        cold.sync(&prompt[..300], &mut no_progress).unwrap();
        cold.sync(&longer, &mut no_progress).unwrap();
        used.restore_state(&file).unwrap();
        assert_eq!(used.sync(&longer, &mut no_progress).unwrap(), 150, "{what}");
        assert_eq!(bits(used.logits()), bits(cold.logits()), "{what}");
        used.restore_state(&file).unwrap();
        let apart = [&prompt[..100], &other[..50]].concat();
        assert_eq!(used.sync(&apart, &mut no_progress).unwrap(), 50, "{what}");
        fs::remove_file(&file).unwrap();
    }
}

/// A prompt cache of the small model, and a session to read changed ones.
struct Damage<'m> {
    file: PathBuf,
    good: Vec<u8>,
    session: Session<'m>,
}

impl<'m> Damage<'m> {
    fn new(dir: &Path, model: &'m Model, options: &ContextOptions) -> Damage<'m> {
        let file = dir.join("cache");
        let mut session = session(model, options);
        session.sync(&tokens(20, 1), &mut no_progress).unwrap();
        session.save_state(&file, 20).unwrap();
        session.rewind(0);
        Damage { good: fs::read(&file).unwrap(), file, session }
    }

    /// Why the bytes are ignored.
    #[track_caller]
    fn ignored(&mut self, bytes: &[u8], what: &str) -> String {
        fs::write(&self.file, bytes).unwrap();
        match self.session.restore_state(&self.file) {
            Ok(Found::Unusable(why)) => {
                assert!(!why.is_empty() && why.len() < 200 && self.session.n_past() == 0, "{what}: {why}");
                why
            }
            other => panic!("{what}: {other:?}"),
        }
    }

    /// The good file changed, its checksum put right.
    #[track_caller]
    fn summed(&mut self, part: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.good[..self.good.len() - 8].to_vec();
        change(&mut bytes);
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let why = self.ignored(&bytes, part);
        assert!(why.contains(part), "'{part}': {why}");
    }

    /// The session still computes as a new one.
    fn works(mut self, model: &'m Model, options: &ContextOptions) {
        let mut cold = session(model, options);
        let prompt = tokens(50, 3);
        for session in [&mut self.session, &mut cold] {
            session.sync(&prompt, &mut no_progress).unwrap();
            session.decode(7).unwrap();
        }
        assert_eq!(bits(self.session.logits()), bits(cold.logits()));
        fs::write(&self.file, &self.good).unwrap();
        assert_eq!(self.session.restore_state(&self.file).unwrap(), Found::Restored);
    }
}

/// A generator of places (Knuth's MMIX).
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

#[test]
fn damaged_files_are_ignored() {
    let (dir, path) = folder();
    for flash_attn in [true, false] {
        let options = context(CacheType::F16, CacheType::F16, flash_attn);
        let model = load(&path);
        let mut damage = Damage::new(dir.path(), &model, &options);
        let good = damage.good.clone();
        for n in (0..HEADER + 90).chain((HEADER + 90..good.len()).step_by(17)) {
            damage.ignored(&good[..n], &format!("cut to {n}"));
        }
        let mut bytes = good.clone();
        for bit in 0..HEADER * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if bit < 64 {
                fs::write(&damage.file, &bytes).unwrap();
                let e = damage.session.restore_state(&damage.file).unwrap_err();
                assert!(e.kind() == Kind::Malformed && e.to_string().contains("left as it is"), "bit {bit}: {e}");
                let refused = damage.session.save_state(&damage.file, 0).unwrap_err();
                assert!(refused.kind() == Kind::Malformed && fs::read(&damage.file).unwrap() == bytes, "bit {bit}");
            } else {
                damage.ignored(&bytes, &format!("bit {bit}"));
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let mut state = 1;
        for _ in 0..3000 {
            let (at, bit) = (8 + random(&mut state, good.len() - 8), random(&mut state, 8));
            bytes[at] ^= 1 << bit;
            damage.ignored(&bytes, &format!("byte {at} bit {bit}"));
            bytes[at] ^= 1 << bit;
        }
        for more in [1, 8, 4096] {
            damage.ignored(&[&good[..], &vec![0; more]].concat(), "longer");
        }
        damage.works(&model, &options);
    }
}

#[test]
fn files_whose_checksum_is_right_are_checked_too() {
    let (dir, path) = folder();
    let options = context(CacheType::F16, CacheType::F32, true);
    let model = load(&path);
    let mut damage = Damage::new(dir.path(), &model, &options);
    damage.summed("is of version 9", |b| b[8] = 9);
    damage.summed("holds 1025 tokens, and the context 1024", |b| b[12..20].copy_from_slice(&1025u64.to_le_bytes()));
    for n in [0, 1, 19, 21, 1024] {
        damage.summed("bytes for", |b| b[12..20].copy_from_slice(&u64::to_le_bytes(n)));
    }
    for n in [1u64 << 32, 1 << 61, u64::MAX / 4, u64::MAX] {
        damage.summed("tokens, and the context", |b| b[12..20].copy_from_slice(&n.to_le_bytes()));
    }
    // One token less, whose number counts as bytes of cells.
    damage.summed("bytes for 19 tokens", |b| {
        let n_others = u64::from_le_bytes(b[20..28].try_into().unwrap());
        b[12..20].copy_from_slice(&19u64.to_le_bytes());
        b[20..28].copy_from_slice(&(n_others + 4).to_le_bytes());
    });
    for n in [0, 1, 1 << 62, u64::MAX] {
        damage.summed("bytes for", |b| b[20..28].copy_from_slice(&u64::to_le_bytes(n)));
    }
    damage.summed("is of another model", |b| b[28] ^= 1);
    damage.summed("another engine", |b| b[36] ^= 1);
    // What makes the lengths: huge, and none.
    for at in (40..52).chain(56..76).step_by(4) {
        for value in [0, u32::MAX] {
            damage.summed("of another type or layout", |b| {
                let old = u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
                let value = if old == value { 7 } else { value };
                b[at..at + 4].copy_from_slice(&value.to_le_bytes());
            });
        }
    }
    for at in [52, 76, 111] {
        damage.summed("RoPE", |b| b[at] ^= 1);
    }
    for at in PRUNING..HEADER {
        damage.summed("--prune", |b| b[at] ^= 1);
    }
    for token in [-1, 300, i32::MIN, i32::MAX] {
        damage.summed("tokens that the model does not know", |b| {
            b[HEADER + 8..][..4].copy_from_slice(&token.to_le_bytes())
        });
    }
    let cells = HEADER + 80;
    damage.summed("NaN or infinite", |b| b[cells..cells + 2].copy_from_slice(&0x7e00u16.to_le_bytes()));
    damage.summed("NaN or infinite", |b| {
        let end = b.len();
        b[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    damage.summed("bytes for", |b| b.truncate(b.len() - 4));
    damage.works(&model, &options);
}

#[test]
fn files_of_something_else_are_ignored() {
    use CacheType::{F16, F32};
    let (dir, path) = folder();
    let file = dir.path().join("cache");
    let options = context(F16, F16, true);
    let model = load(&path);
    let mut saved = session(&model, &options);
    saved.sync(&tokens(300, 1), &mut no_progress).unwrap();
    saved.save_state(&file, 300).unwrap();
    let why = |model: &Model, options: &ContextOptions| match session(model, options).restore_state(&file).unwrap() {
        Found::Unusable(why) => why,
        other => panic!("{other:?}"),
    };
    let other = |change: &dyn Fn(&mut ContextOptions)| {
        let mut options = options.clone();
        change(&mut options);
        why(&load(&path), &options)
    };
    for (part, change) in [
        ("layout", &(|o: &mut ContextOptions| o.flash_attn = false) as &dyn Fn(&mut ContextOptions)),
        ("type", &|o| o.cache_type_k = F32),
        ("type", &|o| o.cache_type_v = F32),
        ("holds 300 tokens, and the context 256", &|o| o.n_ctx = Some(256)),
    ] {
        let why = other(change);
        assert!(why.contains(part), "'{part}': {why}");
    }
    for rope in [
        RopeOptions { freq_base: Some(20000.0), ..Default::default() },
        RopeOptions { freq_scale: Some(0.5), ..Default::default() },
        RopeOptions { scaling: Some(RopeScaling::Yarn), ..Default::default() },
    ] {
        let why = why(&load_for(&path, Kernels::Ggml, rope), &options);
        assert!(why.contains("RoPE"), "{why}");
    }
    // Models that differ in one thing: numbers, metadata, shape.
    let path = dir.path().join("other.gguf");
    let mut eps = Forge::smallest().doc();
    eps.f32("llama.attention.layer_norm_rms_epsilon", 1e-6);
    for bytes in [
        Forge { seed: 2, ..Forge::smallest() }.doc().bytes(),
        eps.bytes(),
        Forge { n_layer: 1, ..Forge::smallest() }.doc().bytes(),
        Forge { n_vocab: 301, ..Forge::smallest() }.doc().bytes(),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(why(&load(&path), &options), "is of another model");
    }
    // The same model by another name is the same.
    Forge::smallest().write(&path);
    let same = load(&path);
    assert_eq!(session(&same, &options).restore_state(&file).unwrap(), Found::Restored);
}

#[test]
fn a_pruned_session_takes_over_what_it_pruned_so() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (dir.path().join("model.gguf"), dir.path().join("cache"));
    Forge { n_layer: 4, ..Forge::smallest() }.write(&model);
    let prune = ["--prune", "0.4", "--prune-skip", "0", "--prune-multiple", "16", "--prune-min-tokens", "2"];
    let run = |more: &[&str]| {
        let mut command = program(&model, "hello there, hello there, hello there", &file);
        output(command.args(["-n", "20"]).args(more))
    };
    let first = run(&prune);
    assert!(first.1.contains("probe ") && !first.1.contains("cached"), "{}", first.1);
    let again = run(&prune);
    assert!(again.1.contains(" cached)") && !again.1.contains("warning"), "{}", again.1);
    let whole = run(&[]);
    assert!(whole.1.contains("other settings of --prune: ignored") && !whole.1.contains("cached"), "{}", whole.1);
    assert!(run(&[]).1.contains(" cached)"));
    assert!(run(&prune).1.contains("other settings of --prune: ignored"));
    // Options that only say what is written about it are no others.
    let dump = dir.path().join("dump.json");
    let dumped = run(&[&prune[..], &["--prune-dump", dump.to_str().unwrap()]].concat());
    assert!(dumped.1.contains(" cached)"), "{}", dumped.1);
    let replayed = run(&[&prune[..], &["--prune-replay", dump.to_str().unwrap()]].concat());
    assert!(replayed.0 == 2 && replayed.1.contains("--prompt-cache leaves out some"), "{}", replayed.1);
}

/// The built program, for an answer of some tokens.
fn program(model: &Path, prompt: &str, file: &Path) -> Command {
    let mut command = pp_run();
    command.arg("-m").arg(model).args(["-p", prompt, "--temp", "0", "--kernels", "ggml", "--prompt-cache"]).arg(file);
    command.env("PP_ARG_THREADS", "1").stdin(Stdio::null());
    command
}

/// Exit code and stderr.
fn output(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap_or(-1), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_second_run_has_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    let model = smollm2();
    let story = "The river rose in the night and took the bridge with it. ".repeat(20);
    let run = |prompt: &str, more: &[&str]| {
        let o = program(&model, prompt, &file).args(["-n", "6", "-v"]).args(more).output().unwrap();
        let stderr = String::from_utf8(o.stderr).unwrap();
        assert!(o.status.success(), "{stderr}");
        (o.stdout, stderr)
    };
    let n_tokens = |stderr: &str| {
        let n = stderr.split("prompt ").nth(1).unwrap().split(' ').next().unwrap();
        n.parse::<usize>().unwrap()
    };
    let first = run(&story, &[]);
    let n = n_tokens(&first.1);
    assert!(n > 200 && !first.1.contains("cached"), "{}", first.1);
    let modified = || fs::metadata(&file).unwrap().modified().unwrap();
    let written = modified();
    let second = run(&story, &[]);
    assert!(second.1.contains(&format!("prompt {n} tokens ({} cached)", n - 1)), "{}", second.1);
    assert!(second.0 == first.0 && modified() == written && !second.1.contains("written"), "{}", second.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    // A prompt that goes on otherwise; it is read only.
    let before = fs::read(&file).unwrap();
    let other = run(&format!("{story} What rose?"), &["--prompt-cache-ro"]);
    assert!(other.1.contains(" cached)") && before == fs::read(&file).unwrap(), "{}", other.1);
    let cached: usize = other.1.split(" cached)").next().unwrap().rsplit('(').next().unwrap().parse().unwrap();
    assert!(cached > n - 20 && cached < n && other.1.contains(&format!("{cached} of its {n} tokens taken")));
    // Nor is one made.
    let missing = dir.path().join("missing");
    let made = program(&model, "hi", &missing).args(["-n", "1", "--prompt-cache-ro"]).output().unwrap();
    assert!(made.status.success() && !missing.exists());

    // All: the answer too, but for its last token, which was never computed with.
    let all = run(&story, &["--prompt-cache-all"]);
    assert!(all.1.contains(&format!("{} tokens written", n + 5)), "{}", all.1);
    // A file that has more than is needed stays, and the context is made for it.
    let again = run(&story, &["-n", "1"]);
    assert!(again.1.contains(&format!("({} cached)", n - 1)) && !again.1.contains("written"), "{}", again.1);
    let shorter = run("hi", &["-n", "1"]);
    assert!(!shorter.1.contains("ignored") && shorter.1.contains("tokens written"), "{}", shorter.1);

    // JSON has the prompt's length as ever.
    let json = run(&story, &["--output-format", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.0).unwrap();
    assert_eq!(value["prompt_tokens"], n);
    assert!(dir.path().read_dir().unwrap().count() == 1);
}

#[test]
fn what_is_no_prompt_cache_is_left_alone() {
    let (dir, model) = folder();
    let at = |name: &str| dir.path().join(name);
    let run = |file: &Path| output(program(&model, "hello", file).args(["-n", "2"]));
    let text = at("notes.txt");
    for content in ["dear diary", "PPRUNCAL and more of it"] {
        fs::write(&text, content).unwrap();
        let (code, stderr) = run(&text);
        assert!(code == 65 && stderr.contains("notes.txt: is no prompt cache of pp-run"), "{code}: {stderr}");
        assert_eq!(fs::read_to_string(&text).unwrap(), content);
    }
    let before = fs::read(&model).unwrap();
    assert_eq!(run(&model).0, 65);
    assert!(before == fs::read(&model).unwrap());

    fs::create_dir(at("folder")).unwrap();
    let (code, stderr) = run(&at("folder"));
    assert!(code == 73 && stderr.contains("is no regular file"), "{stderr}");
    let (code, stderr) = run(&at("nowhere/cache"));
    assert!(code == 73 && stderr.contains("cannot be written") && stderr.contains("generated 2"), "{stderr}");

    // Ours, but of no use: replaced. An empty one too, as mktemp makes it.
    let file = at("cache");
    for content in [&b""[..], b"PPRU", b"PPRUNKVC", &[b"PPRUNKVC".as_slice(), &[0xff; 500]].concat()] {
        fs::write(&file, content).unwrap();
        let (code, stderr) = run(&file);
        assert!(code == 0 && stderr.contains("cache: is ") && stderr.contains(": ignored"), "{stderr}");
        assert_eq!(stderr.matches("warning").count(), 1, "{stderr}");
        assert!(run(&file).1.contains(" cached)"));
    }
    // Not so with -ro.
    fs::write(&file, b"PPRUNKVC").unwrap();
    let (code, stderr) = output(program(&model, "hello", &file).args(["-n", "2", "--prompt-cache-ro"]));
    assert!(code == 0 && stderr.contains(": ignored") && fs::read(&file).unwrap() == b"PPRUNKVC", "{stderr}");
    for (args, part) in [
        (&["--prompt-cache-all"][..], "--prompt-cache <FILE>"),
        (&["--prompt-cache-ro"], "--prompt-cache <FILE>"),
        (&["--prompt-cache", "x", "--prompt-cache-all", "--prompt-cache-ro"], "cannot be used with"),
    ] {
        let mut command = pp_run();
        let (code, stderr) = output(command.arg("-m").arg(&model).args(["-p", "x"]).args(args).stdin(Stdio::null()));
        assert!(code == 2 && stderr.contains(part), "{stderr}");
    }
}

#[cfg(unix)]
#[test]
fn links_pipes_and_files_that_may_not_be_read() {
    use std::os::unix::fs::symlink;
    let (dir, model) = folder();
    let at = |name: &str| dir.path().join(name);
    let run = |prompt: &str, file: &Path| output(program(&model, prompt, file).args(["-n", "2"]));
    // What a link leads to is read, and never written to.
    assert_eq!(run("hello", &at("target")).0, 0);
    let before = fs::read(at("target")).unwrap();
    symlink(at("target"), at("link")).unwrap();
    let (code, stderr) = run("hello", &at("link"));
    assert!(code == 0 && stderr.contains(" cached)"), "{stderr}");
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink(), "nothing new to write");
    assert_eq!(run("hello again", &at("link")).0, 0);
    assert!(fs::symlink_metadata(at("link")).unwrap().is_file() && before == fs::read(at("target")).unwrap());
    // To a text, to nothing, to itself.
    fs::write(at("text"), "text").unwrap();
    symlink(at("text"), at("to-text")).unwrap();
    assert_eq!((run("hello", &at("to-text")).0, fs::read_to_string(at("text")).unwrap()), (65, "text".into()));
    symlink(at("nothing"), at("to-nothing")).unwrap();
    assert_eq!((run("hello", &at("to-nothing")).0, at("nothing").exists()), (0, false));
    symlink(at("loop"), at("loop")).unwrap();
    assert_eq!(run("hello", &at("loop")).0, 66);
    // One planted where the temporary file goes is not followed either; its name has the process's number, so it takes the library.
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let (code, stderr) = run("hello", &at("pipe"));
    assert!(code == 73 && stderr.contains("is no regular file"), "{stderr}");
    let options = context(CacheType::F16, CacheType::F16, true);
    let model = load(&model);
    let mut session = session(&model, &options);
    session.sync(&tokens(5, 1), &mut no_progress).unwrap();
    symlink(at("text"), at(&format!("new.{}.tmp", std::process::id()))).unwrap();
    session.save_state(&at("new"), 5).unwrap();
    assert_eq!(fs::read_to_string(at("text")).unwrap(), "text");
    assert!(!at(&format!("new.{}.tmp", std::process::id())).exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_write_that_fails_leaves_what_was_there() {
    let (dir, model) = folder();
    let shim = common::shim(dir.path());
    let (mark, out) = (dir.path().join("mark"), dir.path().join("out"));
    fs::create_dir(&out).unwrap();
    let file = out.join("cache");
    let long = "abcdefgh".repeat(30);
    let run = |prompt: &str| output(program(&model, prompt, &file).args(["-n", "2"]));
    // Both begin alike, so that what is new begins with what was restored.
    let [old, new] = ["abc", &long].map(|prompt| {
        assert_eq!(run(prompt).0, 0);
        fs::read(&file).unwrap()
    });
    let mut codes = Vec::new();
    for (call, error) in [("open", 13), ("read", 5), ("mmap", 12), ("write", 28), ("fsync", 5), ("rename", 5)] {
        for n in 1.. {
            assert!(n < 500, "{call} has no end");
            let _ = fs::remove_file(&mark);
            fs::write(&file, &old).unwrap();
            let mut command = program(&model, &long, &file);
            command.args(["-n", "2"]).env("LD_PRELOAD", &shim).env("FAULT_CALL", call).env("FAULT_N", n.to_string());
            command.env("FAULT_ERRNO", error.to_string()).env("FAULT_MARK", &mark);
            let (code, stderr) = output(&mut command);
            let what = format!("{call} {n}, error {error}: {code} {stderr}");
            assert!([0, 1, 65, 66, 71, 73, 74].contains(&code), "{what}");
            let is = fs::read(&file).unwrap();
            assert!(is == old || (is == new && (code == 0 || call == "write")), "{what}");
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{what}: something is left");
            if !mark.exists() {
                assert!(code == 0 && is == new, "{what}");
                break;
            }
            if is == old && stderr.contains("cache: cannot be written") {
                assert!(stderr.contains("generated 2 tokens"), "{what}: after the answer");
                codes.push((call, code));
            }
        }
    }
    for expected in [("open", 73), ("write", 74), ("fsync", 74), ("rename", 73)] {
        assert!(codes.contains(&expected), "{expected:?} in {codes:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_prompt_is_kept_as_far_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    let model = smollm2();
    let story = "The river rose in the night and took the bridge with it. ".repeat(120);
    let command = || {
        let mut command = program(&model, &story, &file);
        command.args(["-n", "1", "-ub", "32", "-c", "2048"]);
        command
    };
    // Longer and longer, until a micro-batch is through. A signal that the program does not catch yet ends it without a code.
    for wait in [50, 100, 200, 400, 800, 1600, 3200, 6400, 12800] {
        let child = command().stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(matches!(ended.status.code(), None | Some(130)), "{:?} {stderr}", ended.status);
        if file.exists() {
            assert!(stderr.contains("interrupted"), "{stderr}");
            break;
        }
    }
    let (code, stderr) = output(&mut command());
    let cached: usize = stderr.split(" cached)").next().unwrap().rsplit('(').next().unwrap().parse().unwrap();
    assert!(code == 0 && cached >= 32 && cached.is_multiple_of(32), "{stderr}");
}
