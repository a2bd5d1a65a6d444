//! Models of architectures that pp-run has no graph for, by libllama.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::forge::{Arch, Forge};
use common::{pp_run, turn};
use ggml::Type;
use pp_run::engine::prompt_cache::Found;
use pp_run::engine::{LlamaSession, Options, Timeline, libllama::Model};
use pp_run::error::Kind;
use pp_run::gguf::Gguf;
use pp_run::model::Options as ModelOptions;

/// Experts, a state, both kinds of memory.
const ARCHS: [Arch; 3] = [Arch::Qwen3Moe, Arch::Mamba, Arch::Lfm2];

fn forged(dir: &Path, arch: Arch) -> PathBuf {
    let path = dir.join(arch.name()).with_extension("gguf");
    // In floats: which experts are chosen, quantised products may decide differently for other batches.
    Forge { arch, n_layer: 4, ..Forge::tiny(Type::F32, 4, 2) }.write(&path);
    path
}

fn load(path: &Path) -> Model {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    Model::load(gguf, &ModelOptions::new(path), &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
}

fn options() -> Options {
    Options { n_ctx: Some(2048), n_ubatch: 64, ..Options::new(2) }
}

fn session<'m>(model: &'m Model, options: &Options) -> LlamaSession<'m> {
    LlamaSession::new(model, options, Arc::new(AtomicBool::new(false))).unwrap()
}

/// The logits of a text that is read at once.
fn alone(model: &Model, options: &Options, text: &[i32]) -> Vec<f32> {
    let mut session = session(model, options);
    assert_eq!(session.sync(text, &mut |_, _| {}).unwrap(), text.len());
    session.logits().to_vec()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    common::nmse(a, b) < 1e-6
}

#[test]
fn they_answer_are_scored_and_timed() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "the lighthouse keeper had not spoken to anyone for a long time ".repeat(20)).unwrap();
    for arch in ARCHS {
        let model = forged(dir.path(), arch);
        let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
        let run = |args: &[&str]| {
            let out = pp_run().args(args).output().unwrap();
            let [stdout, stderr] = [&out.stdout, &out.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
            (out.status.code(), stdout, stderr)
        };
        // The one with experts has a graph of ours, too.
        let engine = if arch == Arch::Qwen3Moe { "libllama" } else { "auto" };
        let ask = ["-m", model, "-p", "abc", "-n", "8", "--temp", "0", "-no-cnv", "--engine", engine];
        let (code, first, note) = run(&ask);
        assert!(code == Some(0) && note.contains("by libllama: no pruning, no kernels of our own"), "{note}");
        assert_eq!(run(&ask).1, first, "the same answer again");
        let (code, table, error) =
            run(&["perplexity", "-m", model, "-f", text, "-c", "128", "--chunks", "2", "--engine", engine]);
        assert!(code == Some(0) && table.contains("Final estimate: PPL = "), "{error}");
        let (code, table, error) = run(&["bench", "-m", model, "-p", "16", "-n", "2", "-r", "1", "--engine", engine]);
        assert!(code == Some(0) && table.contains("pp16") && table.contains("libllama"), "{error}");
        let steps = ["bench", "-m", model, "--steps", "4", "-d", "8", "-r", "1", "--engine", engine];
        let (code, table, error) = run(&steps);
        assert!(code == Some(0) && table.contains("step4 @ d8") && !error.contains("warning"), "{error}");
        let (code, out, error) = run(&[&ask[..], &["--prune", "0.3"]].concat());
        let part = "--prune needs a graph of pp-run's own";
        assert!(code == Some(69) && out.is_empty() && error.contains(part), "{code:?} {error}");
        if engine == "auto" {
            let (code, _, error) = run(&[&ask[..10], &["own"]].concat());
            assert!(code == Some(69) && error.contains("has no graph of its own for the architecture"), "{error}");
        }
        let (code, _, error) = run(&[&ask[..], &["--mlock"]].concat());
        assert!(code == Some(2) && error.contains("on which --mlock has no effect"), "{error}");
        let (code, _, error) = run(&["calibrate", "-m", model, "-f", text, "--engine", engine]);
        assert!(code == Some(69) && error.contains("calibrate needs a graph of pp-run's own"), "{error}");
    }
}

#[test]
fn what_was_read_is_not_read_again() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let model = load(&forged(dir.path(), arch));
        let mut session = session(&model, &options());
        let has_state = arch != Arch::Qwen3Moe;
        let message = |n: usize, step: i32| (0..n as i32).map(move |i| (i * step + 7) % 500).collect::<Vec<i32>>();
        let first = message(150, 31);
        session.sync(&first, &mut |_, _| {}).unwrap();
        for token in [40, 41, 42] {
            session.decode(token).unwrap();
        }
        // The next turn begins with all that was read and written.
        let next = [&first[..], &[40, 41, 42, 43], &message(20, 7)].concat();
        assert_eq!(session.sync(&next, &mut |_, _| {}).unwrap(), 21, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &options(), &next)), "{arch:?}");
        // The answer is read as another one: the memory goes back to the end of the first message, a state to before its last token.
        session.decode(44).unwrap();
        let other = [&first[..], &[50, 51], &message(9, 5)].concat();
        let read = session.sync(&other, &mut |_, _| {}).unwrap();
        assert_eq!(read, if has_state { 12 } else { 11 }, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &options(), &other)), "{arch:?}");
        // The same again is its last token.
        session.decode(44).unwrap();
        assert_eq!(session.sync(&other, &mut |_, _| {}).unwrap(), 1, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &options(), &other)), "{arch:?}");
        // Back to the middle of a message: there is no state of that.
        let middle = [&first[..100], &[60]].concat();
        let read = session.sync(&middle, &mut |_, _| {}).unwrap();
        assert_eq!(read, if has_state { 101 } else { 1 }, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &options(), &middle)), "{arch:?}");
    }
}

/// An answer to a text with a prompt cache: exit code, stdout, stderr.
fn answer(model: &Path, text: &str, file: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = pp_run();
    command.arg("-m").arg(model).args(["-p", text, "-n", "8", "--temp", "0", "-no-cnv", "-v", "--prompt-cache"]);
    let out = command.arg(file).args(["--engine", "libllama"]).args(more).output().unwrap();
    let [stdout, stderr] = [&out.stdout, &out.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    (out.status.code(), stdout, stderr)
}

#[test]
fn what_a_file_has_is_not_read_again() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    // Gemma 3 has windows that are shorter than the text.
    let archs = [ARCHS[0], ARCHS[1], ARCHS[2], Arch::Gemma3];
    for (arch, flash_attn) in archs.into_iter().flat_map(|arch| [(arch, true), (arch, false)]) {
        let model = load(&forged(dir.path(), arch));
        let options = Options { flash_attn, ..options() };
        let has_state = matches!(arch, Arch::Mamba | Arch::Lfm2);
        let text = |n: i32, step: i32| (0..n).map(move |i| (i * step + 7) % 500).collect::<Vec<i32>>();
        let prompt = text(150, 31);
        let mut saved = session(&model, &options);
        assert_eq!(saved.restore_state(&file).unwrap(), Found::Nothing, "{arch:?}");
        saved.sync(&prompt, &mut |_, _| {}).unwrap();
        saved.decode(40).unwrap();
        let n = saved.saveable(prompt.len());
        assert_eq!(n, if has_state { 149 } else { 150 }, "{arch:?}");
        saved.save_state(&file, n).unwrap();
        // The same, one that goes on, one that goes on otherwise from the middle.
        let other = [&prompt[..100], &text(30, 5)].concat();
        let from_middle = if matches!(arch, Arch::Qwen3Moe) { 30 } else { 130 };
        for (prompt, n_read) in [(&prompt, 1), (&[&prompt[..], &text(20, 7)].concat(), 170 - n), (&other, from_middle)]
        {
            let mut restored = session(&model, &options);
            restored.sync(&text(30, 11), &mut |_, _| {}).unwrap();
            assert_eq!(restored.restore_state(&file).unwrap(), Found::Restored, "{arch:?}");
            assert_eq!((restored.tokens(), restored.logits()), (&text(150, 31)[..n], &[][..]), "{arch:?}");
            assert_eq!(restored.sync(prompt, &mut |_, _| {}).unwrap(), n_read, "{arch:?}");
            assert!(near(restored.logits(), &alone(&model, &options, prompt)), "{arch:?}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn answers_with_a_file_are_those_without() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let story = "the lighthouse keeper had not spoken to anyone for a long time ".repeat(4);
    for arch in ARCHS {
        let (model, file) = (forged(dir.path(), arch), dir.path().join(format!("{}.cache", arch.name())));
        let run = |text: &str, more: &[&str]| {
            let (code, answer, error) = answer(&model, text, &file, more);
            assert!(code == Some(0) && !error.contains("warning"), "{arch:?}: {error}");
            (answer, error)
        };
        let first = run(&story, &[]);
        assert!(!first.1.contains(" cached)") && first.1.contains("tokens written"), "{arch:?}: {}", first.1);
        let again = run(&story, &[]);
        assert!(again.1.contains(" cached)") && !again.1.contains("tokens written"), "{arch:?}: {}", again.1);
        assert_eq!(again.0, first.0, "{arch:?}");
        let without = dir.path().join("none");
        let longer = format!("{story} and then");
        let (_, expected, _) = answer(&model, &longer, &without, &["--prompt-cache-ro"]);
        let with = run(&longer, &["--prompt-cache-ro"]);
        assert!(with.1.contains(" cached)") && with.0 == expected && !without.exists(), "{arch:?}: {}", with.1);
        // What was written too, but for its last token.
        assert!(run(&story, &["--prompt-cache-all"]).1.contains("tokens written"), "{arch:?}");
        let with = run(&format!("{story}{}", first.0), &["--prompt-cache-ro"]);
        assert!(with.1.contains(" tokens taken"), "{arch:?}: {}", with.1);
    }
}

#[test]
fn files_that_do_not_fit_are_ignored_and_replaced() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    for arch in ARCHS {
        let model = forged(dir.path(), arch);
        let text = "the lighthouse keeper";
        let _ = std::fs::remove_file(&file);
        let (code, expected, error) = answer(&model, text, &file, &[]);
        assert_eq!(code, Some(0), "{arch:?}: {error}");
        let good = std::fs::read(&file).unwrap();
        let ignored = |bytes: &[u8], part: &str, more: &[&str]| {
            std::fs::write(&file, bytes).unwrap();
            let (code, answer, error) = answer(&model, text, &file, more);
            let warned = error.matches("warning").count() == 1 && error.contains(part) && error.contains(": ignored");
            assert!(code == Some(0) && warned && !error.contains(" cached)"), "{arch:?}, {part}: {code:?} {error}");
            assert!(answer == expected || !more.is_empty(), "{arch:?}, {part}");
            assert!(std::fs::read(&file).unwrap() != bytes, "{arch:?}, {part}: it is replaced");
        };
        for n in [9, 60, good.len() / 2, good.len() - 1] {
            ignored(&good[..n], "cache: ", &[]);
        }
        for at in [9, 12, 20, 28, 36, 40, 52, 64, good.len() / 2, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            ignored(&bytes, "cache: ", &[]);
        }
        ignored(&good, "-ctk", &["-ctk", "f32"]);
        // A state that is none, in a file that is right otherwise; libllama's versions; tokens.
        let summed = |change: &dyn Fn(&mut Vec<u8>), part: &str| {
            let mut bytes = good[..good.len() - 8].to_vec();
            change(&mut bytes);
            bytes.extend(xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes());
            ignored(&bytes, part, &[]);
        };
        let n_tokens = u64::from_le_bytes(good[12..20].try_into().unwrap()) as usize;
        let state = 64 + 4 * n_tokens;
        summed(&|b| b[56] ^= 1, "another version of pp-run or libllama");
        summed(&|b| b[64..68].copy_from_slice(&(-1i32).to_le_bytes()), "tokens that the model does not know");
        summed(&|b| b[state] ^= 1, "a state that libllama does not take");
        summed(
            &|b| {
                b.truncate(state + 20);
                b[20..28].copy_from_slice(&(64 + 20 + 8u64).to_le_bytes());
            },
            "a state that libllama does not take",
        );
        // One token more than the state is of.
        summed(
            &|b| {
                b[12..20].copy_from_slice(&(n_tokens as u64 + 1).to_le_bytes());
                b.splice(state..state, 9i32.to_le_bytes());
            },
            "a state that libllama does not take",
        );
        if arch == Arch::Qwen3Moe {
            // Cells of our own engine.
            std::fs::remove_file(&file).unwrap();
            assert_eq!(answer(&model, text, &file, &["--engine", "own"]).0, Some(0));
            ignored(&std::fs::read(&file).unwrap(), "another engine", &[]);
        }
    }
    std::fs::write(&file, "dear diary").unwrap();
    let (code, out, error) = answer(&forged(dir.path(), ARCHS[1]), "abc", &file, &[]);
    assert!(code == Some(65) && out.is_empty() && error.contains("is no prompt cache of pp-run"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"dear diary");
}

#[test]
fn an_interrupt_ends_a_prompt_soon_and_leaves_what_was_done() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let path = dir.path().join("large.gguf");
        let forge = Forge { arch, n_layer: 4, n_embd: 512, n_ff: 2048, n_ctx: 8192, ..Forge::tiny(Type::Q8_0, 8, 2) };
        forge.write(&path);
        let model = load(&path);
        let interrupt = Arc::new(AtomicBool::new(false));
        let options = Options { n_ctx: Some(8192), n_ubatch: 512, ..options() };
        let mut session = LlamaSession::new(&model, &options, interrupt.clone()).unwrap();
        let prompt: Vec<i32> = (0..8000).map(|i| (i * 31 + 7) % 500).collect();
        let set = std::thread::spawn({
            let interrupt = interrupt.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                interrupt.store(true, Ordering::Relaxed);
                Instant::now()
            }
        });
        let error = session.sync(&prompt, &mut |_, _| {}).unwrap_err();
        let waited = set.join().unwrap().elapsed();
        assert_eq!(error.kind(), Kind::Interrupted, "{arch:?}: {error}");
        // No test asserts a time.
        println!("{arch:?}: interrupted after {waited:?}");
        interrupt.store(false, Ordering::Relaxed);
        let done = session.n_past();
        assert!(done < prompt.len());
        let short = &prompt[..(done + 40).min(prompt.len())];
        session.sync(short, &mut |_, _| {}).unwrap();
        let mut fresh = LlamaSession::new(&model, &options, interrupt).unwrap();
        fresh.sync(short, &mut |_, _| {}).unwrap();
        assert!(near(session.logits(), fresh.logits()), "{arch:?}");
    }
}
