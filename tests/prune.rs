//! Probe Pruning against the reference (tests/golden), and what must hold whatever the numbers are.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use common::forge::{Arch, Forge, golden};
use common::{gemma3, load, n_gpu_layers, nmse, ppl, smollm2, turn};
use ggml::Type;
use pp_run::engine::{Options as ContextOptions, Session};
use pp_run::prune::{
    self, Block, BlockKind, Formula, HistoryKind, Method, Options as PruneOptions, Plan, Record, Sources,
};
use pp_run::weights::Mlp;
use serde_json::{Value, json};

#[allow(dead_code, reason = "its main is an example's")]
#[path = "tools/requantise.rs"]
mod requantise;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fn pp_run(args: &[&str]) -> Output {
    common::pp_run().args(args).stdin(std::process::Stdio::null()).output().unwrap()
}

fn ok(args: &[&str]) -> (String, String) {
    let out = pp_run(args);
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

/// The one line of an error, after the exit code was checked.
fn refused(args: &[&str], code: i32) -> String {
    let out = pp_run(args);
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    assert!(out.stdout.is_empty(), "{args:?}");
    err.lines().last().unwrap_or_default().to_owned()
}

/// The number that a text has behind these words.
fn number_after(text: &str, words: &str) -> f64 {
    text.split(words).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

type Sets = BTreeMap<String, BTreeSet<u64>>;

/// Kept sets of each batch of a dump; masks that are fixed count as the first.
fn dump(path: &Path) -> Vec<Sets> {
    let dump: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let sets = |batch: &Value| {
        let block = |b: &Value| {
            let kept = b["kept"].as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect();
            (format!("{} {}", b["layer"], b["block"].as_str().unwrap()), kept)
        };
        batch["blocks"].as_array().unwrap().iter().map(block).collect()
    };
    dump["batches"].as_array().unwrap().iter().map(sets).collect()
}

fn from_mask(hex: &str) -> BTreeSet<u64> {
    let digits = hex.chars().rev().enumerate();
    digits
        .flat_map(|(i, c)| (0..4).filter(move |b| c.to_digit(16).unwrap() >> b & 1 == 1).map(move |b| 4 * i as u64 + b))
        .collect()
}

/// Mean over the blocks of |a and b| / |a or b|; a block that our dump has not is whole.
fn jaccard(ours: &Sets, golden: &Value) -> f64 {
    let golden = golden.as_object().unwrap();
    let one = |(block, mask): (&String, &Value)| {
        let want = from_mask(mask.as_str().unwrap());
        let got = ours.get(block).cloned().unwrap_or_else(|| (0..want.len() as u64).collect());
        want.intersection(&got).count() as f64 / want.union(&got).count() as f64
    };
    golden.iter().map(one).sum::<f64>() / golden.len() as f64
}

fn text(name: &str) -> String {
    here(&format!("tests/golden/{name}.txt")).to_str().unwrap().to_owned()
}

/// Runs all methods on a model of tests/golden and compares: least mean Jaccard index of each method's sets, largest relative
/// error of a perplexity, or on a GPU of its logarithm.
fn compare(name: &str, model: &Path, least_jaccard: f64, most_error: f64) {
    let all: Value = serde_json::from_str(&fs::read_to_string(here("tests/golden/golden.json")).unwrap()).unwrap();
    let golden = &all[name];
    let number = |key: &str| golden[key].to_string();
    let (batch, seq, skip) = (number("batch"), number("seq"), number("skip"));
    let model = model.to_str().unwrap();
    let (calibration, file) = (text("calibration"), text("text"));
    ok(&[
        "calibrate",
        "--no-costs",
        "-m",
        model,
        "-f",
        &calibration,
        "--batch",
        &batch,
        "--seqs",
        &number("calib_seqs"),
        "--seq-len",
        &seq,
    ]);
    let base = ["perplexity", "-m", model, "-f", &file, "--batch", &batch, "--seq", &seq, "--chunks", "8"];
    for (key, want) in golden["figures"].as_object().unwrap() {
        let (method, ratio) = key.split_once(' ').unwrap();
        let path = DIR.path().join(format!("{name}-{method}-{ratio}.json"));
        let mut args = base.to_vec();
        if method != "dense" {
            args.extend(["--prune", ratio, "--prune-skip", &skip, "--prune-dump", path.to_str().unwrap()]);
            args.extend(if method == "pp" { vec!["--prune-paper"] } else { vec!["--prune-method", method] });
        }
        let got = ppl(&ok(&args).0);
        let expected = want["ppl"].as_f64().unwrap();
        // A GPU's products are of 16-bit floats. Perplexities of random models are up to 1e26, which nobody can compute so: their logarithms, which
        // are sums of logits, are compared.
        let ratio = if n_gpu_layers() > 0 { got.ln() / expected.ln() } else { got / expected };
        let error = (ratio - 1.0).abs();
        let most = if method == "dense" { 0.002 } else { most_error };
        assert!(error <= most, "{name} {key}: perplexity {got}, the reference has {expected}");
        if method == "dense" {
            continue;
        }
        let ours = dump(&path);
        let batches = want["kept"].as_array().unwrap();
        for (i, want) in batches.iter().enumerate() {
            let j = jaccard(&ours[i.min(ours.len() - 1)], want);
            assert!(j >= least_jaccard, "{name} {key}, batch {i}: mean Jaccard index {j:.4}");
        }
    }
}

#[test]
fn smollm2_agrees_with_the_reference() {
    let _turn = turn();
    let model = DIR.path().join("smollm2-f32.gguf");
    requantise::requantise(&smollm2(), &model, ggml::Type::F32);
    compare("smollm2", &model, 0.98, 0.01);
    fs::remove_file(model).unwrap();
}

#[test]
fn tiny_models_agree_with_the_reference_in_every_choice() {
    let _turn = turn();
    for (name, forge) in golden() {
        let model = DIR.path().join(name).with_extension("gguf");
        forge.write(&model);
        // As many units may differ there as in `tests/stages.rs`: one in twenty.
        let (jaccard, error) = if n_gpu_layers() > 0 { (0.9, 0.01) } else { (1.0, 0.002) };
        compare(name, &model, jaccard, error);
    }
}

/// A tiny model of 8 heads in a file of its own.
fn tiny(name: &str, ty: Type, n_head_kv: usize) -> String {
    tiny_of(Arch::Llama, name, ty, n_head_kv)
}

/// A tiny model of this architecture, with 8 heads. For llama, every matrix has a bias.
fn tiny_of(arch: Arch, name: &str, ty: Type, n_head_kv: usize) -> String {
    let path = DIR.path().join(name).with_extension("gguf");
    let biases = arch == Arch::Llama;
    let forge = Forge { arch, n_layer: 5, seed: 3, biases, ..Forge::tiny(ty, 8, n_head_kv) };
    forge.write(&path);
    path.to_str().unwrap().to_owned()
}

/// Longer than what is read whole at its start and at its end.
const PROMPT: &str = "the lighthouse keeper had not spoken to anyone for a long time and so he walked down to the harbour, where the \
     boats lay side by side and the nets hung out to dry";

/// The first record of each batch that was pruned, or of reduced weights.
fn pruned(records: &[Sets]) -> Vec<&Sets> {
    records.iter().filter(|r| !r.is_empty()).collect()
}

#[test]
fn a_ratio_of_zero_is_the_dense_model() {
    let _turn = turn();
    let model = tiny("zero", Type::Q4_0, 2);
    let hash = |more: &[&str]| {
        let mut args = vec!["-m", &model, "-p", PROMPT, "-n", "8", "--temp", "0", "-no-cnv", "--output-format", "json"];
        args.extend(more);
        let object: Value = serde_json::from_str(&ok(&args).0).unwrap();
        (object["logits_hash"].clone(), object["text"].clone())
    };
    for kernels in ["ggml", "native"] {
        let dense = hash(&["--kernels", kernels]);
        assert_eq!(dense, hash(&["--kernels", kernels, "--prune", "0"]));
        let pruned = ["--kernels", kernels, "--prune", "0.4", "--prune-skip", "1", "--prune-min-tokens", "2"];
        assert_ne!(dense, hash(&pruned));
    }
}

#[test]
fn counts_are_exact_masks_are_reproducible_and_dumps_replay() {
    let _turn = turn();
    let llama = [(8, Type::F32), (2, Type::Q4_0), (8, Type::Q4_K), (2, Type::Q8_0), (8, Type::Q6_K), (8, Type::Q5_0)];
    let others = [
        (Arch::Qwen2, 2, Type::Q4_0),
        (Arch::Qwen3, 8, Type::Q4_K),
        (Arch::Phi3, 2, Type::Q4_K),
        (Arch::Gemma2, 8, Type::Q4_0),
        (Arch::Gemma3, 2, Type::Q8_0),
        (Arch::Opt, 8, Type::Q8_0),
        (Arch::Gemma4, 2, Type::Q8_0),
    ];
    let all: Vec<_> = llama.map(|(n_head_kv, ty)| (Arch::Llama, n_head_kv, ty)).into_iter().chain(others).collect();
    count_and_replay(&all);
}

/// A test of its own, as models with experts end the process of Debian 12's software device.
#[test]
fn counts_are_exact_and_dumps_replay_with_experts() {
    let _turn = turn();
    count_and_replay(&[(Arch::Qwen3Moe, 2, Type::Q4_K), (Arch::GptOss, 8, Type::Q8_0)]);
}

/// Runs models, given by architecture, heads of keys and type, with the masks that they choose and with these masks given.
fn count_and_replay(models: &[(Arch, usize, Type)]) {
    for (&(arch, n_head_kv, ty), kernels) in models.iter().flat_map(|m| [(m, "ggml"), (m, "native")]) {
        let name = format!("{}-{n_head_kv}-{ty}-{kernels}", arch.name());
        let model = tiny_of(arch, &format!("dumps-{name}"), ty, n_head_kv);
        // Of experts nothing is left out, so that less can be left out of all.
        let has_experts = matches!(arch, Arch::Qwen3Moe | Arch::GptOss);
        let ratio = if has_experts { 0.1 } else { 0.4 };
        let share = ratio.to_string();
        let path = |which: &str| DIR.path().join(format!("{which}-{name}.json")).to_str().unwrap().to_owned();
        let [first, second, third] = ["a", "b", "c"].map(path);
        let run = |more: &[&str]| {
            let mut args = vec!["-m", &model, "-p", PROMPT, "-n", "8", "--temp", "0", "-no-cnv", "--prune", &share];
            args.extend(["--prune-answer", "0.4", "--kernels", kernels]);
            args.extend(["--prune-skip", "1", "--prune-min-tokens", "2", "--output-format", "json"]);
            args.extend(more);
            let object: Value = serde_json::from_str(&ok(&args).0).unwrap();
            (object["logits_hash"].clone(), object["text"].clone(), object["prune"].clone())
        };
        let one = run(&["--prune-dump", &first, "-t", "2"]);
        let line = one.2.as_str().unwrap().to_owned();
        assert!(line.starts_with("probe ") && line.contains("kept "), "{line}");
        run(&["--prune-dump", &second, "-t", "1"]);
        assert_eq!(
            fs::read_to_string(&first).unwrap(),
            fs::read_to_string(&second).unwrap(),
            "threads make no difference"
        );
        let batches = dump(Path::new(&first));
        assert_eq!(batches.len(), 2, "the prompt, and the masks of its answer");
        let counts = |batch: &Sets| batch.iter().map(|(b, k)| (b.clone(), k.len())).collect::<Vec<_>>();
        let [middle, answer] = pruned(&batches)[..] else { panic!("{name}") };
        let options = PruneOptions { skip: 1, ..PruneOptions::new(ratio) };
        let plan = Plan::new(&options, None, common::load(Path::new(&model)).dims()).unwrap();
        let planned = plan.blocks().filter_map(|b| Some((format!("{} {}", b.il, b.kind.name()), plan.kept(b)?)));
        assert_eq!(counts(middle), planned.collect::<Vec<_>>());
        let is_dropped = |k: &BTreeSet<u64>| k.is_empty();
        assert!(middle.values().any(is_dropped) && !middle.values().all(is_dropped), "{middle:?}");
        // 5 / 4 * 0.4 = 0.5 of the layers after the first; but attention with the keys of another layer is whole.
        let n_blocks = if has_experts { 4 } else { 8 - usize::from(arch == Arch::Gemma4) };
        let half = |b: &str| match b.split_once(' ') {
            Some((_, "attn")) => 4,
            Some(("1", _)) if arch == Arch::Gemma4 => 512,
            _ => 256,
        };
        assert!(answer.len() == n_blocks && answer.iter().all(|(b, k)| k.len() == half(b)), "{name}: {answer:?}");
        let again = run(&["--prune-replay", &first, "--prune-dump", &third]);
        assert_eq!(again.1, one.1, "{name}");
        // See `a_conversation_of_two_turns_replays`.
        if n_gpu_layers() == 0 {
            assert_eq!(again.0, one.0, "{name}");
        }
        assert_eq!(dump(Path::new(&third)), batches);
    }
}

#[test]
fn a_conversation_of_two_turns_replays() {
    let _turn = turn();
    let model = PathBuf::from(tiny("turns", Type::F32, 2));
    let context = ContextOptions { n_ctx: Some(512), ..ContextOptions::new(2) };
    let model = common::load(&model);
    let least = Some(2);
    let options =
        PruneOptions { skip: 1, min_tokens: least, answer: 0.4, dump: Some("-".into()), ..PruneOptions::new(0.4) };
    let run = |replay: Option<Vec<Record>>| {
        let mut session = common::session(&model, &context);
        let sources = prune::Sources { replay, ..Default::default() };
        let setup = prune::prepare(&options, model.dims(), model.layers(), sources, 1).unwrap();
        session.set_pruning(Some(setup)).unwrap();
        let mut logits = Vec::new();
        let mut text: Vec<i32> = (0..40).map(|i| 300 + i).collect();
        for turn in 0..2 {
            session.sync(&text, &mut |_, _| {}).unwrap();
            logits.push(session.logits().to_vec());
            for i in 0..3 {
                session.decode(400 + i).unwrap();
                logits.push(session.logits().to_vec());
            }
            text = session.tokens().to_vec();
            text.extend((0..50).map(|i| 310 + turn + 2 * i));
        }
        (logits, session.records().unwrap().to_vec())
    };
    let (logits, records) = run(None);
    let frozen: Vec<bool> = records.iter().map(|r| r.frozen).collect();
    assert_eq!(frozen, [false, true, false, true], "each turn has masks of its own");
    let (again, replayed) = run(Some(records.clone()));
    // A GPU rounds a product by how many rows are multiplied at once, and without a probe they are others.
    let most = if n_gpu_layers() > 0 { 1e-3 } else { 0.0 };
    assert!(nmse(&again.concat(), &logits.concat()) <= most);
    assert!(replayed.iter().zip(&records).all(|(a, b)| a.kept == b.kept && a.frozen == b.frozen));
}

#[test]
fn short_answers_run_whole_and_long_ones_have_their_masks_renewed() {
    let _turn = turn();
    let context = ContextOptions { n_ctx: Some(512), ..ContextOptions::new(2) };
    let model = common::load(&PathBuf::from(tiny("answers", Type::F32, 2)));
    let least = Some(20);
    let options =
        PruneOptions { skip: 1, min_tokens: least, answer: 0.4, dump: Some("-".into()), ..PruneOptions::new(0.4) };
    let run = |replay: Option<Vec<Record>>, n: usize, expected: Option<usize>| {
        let mut session = common::session(&model, &context);
        let sources = prune::Sources { replay, ..Default::default() };
        let setup = prune::prepare(&options, model.dims(), model.layers(), sources, 1).unwrap();
        session.set_pruning(Some(setup)).unwrap();
        let text: Vec<i32> = (0..40).map(|i| 300 + i).collect();
        session.sync(&text, &mut |_, _| {}).unwrap();
        expected.into_iter().for_each(|n| session.expect(n));
        for i in 0..n {
            session.decode(400 + i as i32 % 100).unwrap();
        }
        (session.logits().to_vec(), session.records().unwrap().to_vec(), session.prune_report().unwrap().line())
    };
    let frozen = |records: &[Record]| -> Vec<usize> { records.iter().filter(|r| r.frozen).map(|r| r.first).collect() };
    let (_, records, line) = run(None, 10, Some(19));
    assert!(frozen(&records).is_empty() && line.ends_with("answer dense: below break-even (20 tokens)"), "{line}");
    let (logits, records, _) = run(None, 90, Some(90));
    // After 64 tokens, which are more than the prompt: they run once more, whole.
    assert_eq!((frozen(&records), records.len()), (vec![40, 104], 4));
    assert_eq!((records[2].first, records[2].n_each, records[2].kept.is_empty()), (40, 64, true));
    assert_ne!(records[1].kept, records[3].kept);
    let (again, replayed, _) = run(Some(records.clone()), 90, None);
    assert!(again == logits);
    assert!(replayed.iter().zip(&records).all(|(a, b)| (a.first, a.frozen, &a.kept) == (b.first, b.frozen, &b.kept)));
}

#[test]
fn whole_texts_and_texts_in_pieces_run_with_every_cache() {
    let _turn = turn();
    for (arch, n_head_kv) in
        [(Arch::Llama, 8), (Arch::Llama, 2), (Arch::GptOss, 8), (Arch::Mixtral, 2), (Arch::Gemma4, 8)]
    {
        let model = tiny_of(arch, &format!("caches-{arch:?}-{n_head_kv}"), Type::F32, n_head_kv);
        let file = text("text");
        let run = |more: &[&str]| {
            let mut args = vec!["perplexity", "-m", &model, "-f", &file, "-c", "256", "--chunks", "2", "--kl"];
            args.extend(["--prune", "0.2", "--prune-skip", "1", "--prune-tokens", "1"]);
            args.extend(more);
            let out = ok(&args).0;
            assert!(out.contains("Mean    KLD: ") && out.contains("Same top p: "), "{out}");
            ppl(&out)
        };
        let whole = run(&[]);
        for more in [&["-fa", "off"][..], &["-ctk", "f32", "-ctv", "f32"], &["-ctk", "q8_0", "-ctv", "q8_0"]] {
            let got = run(more);
            // Which experts are chosen, rounding may decide otherwise.
            let most = if matches!(arch, Arch::GptOss | Arch::Mixtral) { 0.1 } else { 0.03 };
            assert!((got / whole - 1.0).abs() < most, "{more:?}: {got}, with the defaults {whole}");
        }
        // Other batches, other masks; but of the same worth.
        let pieces = run(&["-ub", "128"]);
        assert!((pieces / whole - 1.0).abs() < 0.1, "{pieces} {whole}");
    }
}

#[test]
fn calibrations_that_are_not_this_models_are_refused() {
    let _turn = turn();
    let model = tiny("calibrated", Type::F32, 2);
    let other = tiny("other", Type::Q8_0, 2);
    let file = text("text");
    let run = |more: &[&'static str]| {
        let mut args: Vec<&str> =
            vec!["perplexity", "-m", &model, "-f", &file, "--batch", "2", "--seq", "32", "--chunks", "2"];
        args.extend(["--prune", "0.4", "--prune-skip", "1"]);
        args.extend(more);
        args.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>()
    };
    let refused = |args: &[String], code| refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), code);
    let paper = run(&["--prune-paper"]);
    assert!(refused(&paper, 66).contains("pp-run calibrate"));

    // Without a text the model writes its own.
    let calibrate = |model: &str, more: &[&str]| {
        let mut args = vec!["calibrate", "--no-costs", "-m", model, "--seqs", "4", "--seq-len", "32"];
        args.extend(more);
        ok(&args)
    };
    calibrate(&model, &[]);
    ok(&paper.iter().map(String::as_str).collect::<Vec<_>>());
    let sidecar = Path::new(&model).with_extension("ppcal");
    let good = fs::read(&sidecar).unwrap();
    calibrate(&model, &[]);
    assert_eq!(fs::read(&sidecar).unwrap(), good, "the same again");

    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&sidecar, &damaged).unwrap();
    assert!(refused(&paper, 65).contains("damaged"));
    fs::write(&sidecar, &good[..100]).unwrap();
    assert!(refused(&paper, 65).contains("damaged"));
    let sidecar_name = sidecar.to_str().unwrap();
    calibrate(&other, &["-o", sidecar_name]);
    assert!(refused(&paper, 65).contains("another model"));
    calibrate(&model, &["--no-positions"]);
    assert!(refused(&paper, 2).contains("--no-positions"));
    ok(&run(&["--prune-method", "wanda-sp"]).iter().map(String::as_str).collect::<Vec<_>>());
    ok(&run(&["--prune-history", "channel"]).iter().map(String::as_str).collect::<Vec<_>>());
    // The break-even is measured with the paper's history too.
    calibrate(&model, &["--seq-len", "256"]);
    ok(&[
        "-m",
        &model,
        "-p",
        PROMPT,
        "-n",
        "4",
        "-no-cnv",
        "-c",
        "256",
        "--prune",
        "0.4",
        "--prune-skip",
        "1",
        "--prune-paper",
    ]);
    calibrate(&model, &["--seq-len", "16"]);
    assert!(refused(&paper, 2).contains("16 positions"));
}

#[test]
fn what_follows_a_pruned_context_is_scored_beside_a_dense_one() {
    let _turn = turn();
    let file = text("text");
    let model = smollm2();
    let model = model.to_str().unwrap();
    let plan = DIR.path().join("last.json");
    let layers: Vec<[f64; 2]> = (0..30).map(|il| if il == 29 { [1.0; 2] } else { [0.0; 2] }).collect();
    fs::write(&plan, json!({ "pp-run prune plan": 1, "budgets": [{ "layers": layers }] }).to_string()).unwrap();
    let base = ["perplexity", "-m", model, "-f", &file, "--context", "128", "--after", "40", "--chunks", "3"];
    let run = |more: &[&str]| -> (f64, f64, f64) {
        let (out, err) = ok(&[&base[..], &["--kl"], more].concat());
        let number = |before: &str| number_after(&out, before);
        assert!(err.contains("probe ") || err.contains("kept 97"), "{err}");
        (number("Mean    KLD:"), number("Mean PPL(base)                :"), number("Final estimate: PPL ="))
    };
    // The last layer matters to nobody but the tokens whose results are wanted.
    let (kl, dense, pruned) = run(&["--prune", "0.03", "--prune-plan", plan.to_str().unwrap()]);
    assert!(kl < 0.01 && (pruned / dense - 1.0).abs() < 0.02, "{kl} {dense} {pruned}");
    // More of it costs more, and spread evenly the most.
    let (little, _, _) = run(&["--prune", "0.2"]);
    let (much, _, _) = run(&["--prune", "0.5"]);
    let (uniform, same, _) = run(&["--prune", "0.5", "--prune-plan", "uniform"]);
    assert!(little < much && much < uniform && same == dense, "{little} {much} {uniform}");
    // What is not read at all is missed more.
    let (out, _) = ok(&[&base[..], &["--kl", "--read-last", "32"]].concat());
    let cut = number_after(&out, "Mean    KLD:");
    assert!(cut > little, "{cut} {little}");
    // A copy of the model in 8 bits differs little from it, itself not at all, and one with other tokens cannot be compared.
    let copy = DIR.path().join("copy.gguf");
    requantise::requantise(&smollm2(), &copy, ggml::Type::Q8_0);
    let against = |of: &str| -> f64 {
        let args = [&["perplexity", "-m", of][..], &base[3..], &["--kl", "--kl-base", model]].concat();
        let (out, _) = ok(&args);
        number_after(&out, "Mean    KLD:")
    };
    let (same, copied) = (against(model), against(copy.to_str().unwrap()));
    assert!(same == 0.0 && copied > 0.0 && copied < little, "{same} {copied} {little}");
    fs::remove_file(copy).unwrap();
    let other = tiny("vocabulary", Type::F32, 2);
    let line = refused(&[&base[..], &["--kl", "--kl-base", &other]].concat(), 2);
    assert!(line.contains("another vocabulary"), "{line}");
    // Without pruning the context is read and what follows is scored all the same.
    let (out, _) = ok(&base);
    assert!((ppl(&out) / dense - 1.0).abs() < 1e-3, "{out}");
    for (more, reason) in [
        (&["--context", "9"][..], "--after"),
        (&["--context", "0", "--after", "2"], "expected 1 to"),
        (&["--context", "64", "--after", "2", "--read-last", "65"], "1 to --context"),
        (&["-c", "64", "--prune", "0.2", "--prune-plan", "depth"], "needs --context"),
        (&["-c", "64", "--prune", "0.2", "--prune-answer", "0.2"], "no answer is written"),
        (&["--context", "64", "--after", "9", "--prune", "0.2", "--prune-plan", "none.json"], "none.json"),
    ] {
        let args = [&base[..5], more].concat();
        let code = if reason == "none.json" { 66 } else { 2 };
        let line = refused(&args, code);
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn flags_without_effect_are_refused_with_the_reason() {
    let model = smollm2();
    for (flags, reason) in [
        (&["--prune", "0.9"][..], "expected 0 to 0.8"),
        (&["--prune-paper"], "--prune R"),
        (&["--prune", "0.4", "--prune-method", "magic"], "is not one of"),
        (&["--prune", "0.4", "--prune-method", "flap", "--prune-tokens", "0.1"], "never looks at the batch"),
        (&["--prune", "0.4", "--prune-method", "full-batch", "--prune-history", "none"], "whole batch"),
        (&["--prune", "0.4", "--prune-momentum", "0.5"], "without a history"),
        (&["--prune", "0.4", "--prune-metric", "normalised", "--prune-history", "channel"], "has no history"),
        (&["--prune", "0.4", "--prune-tokens", "0"], "more than 0"),
        (&["--prune", "0.4", "--prune-multiple", "0"], "1 or more"),
        (&["--prune", "0.4", "--prune-calibration", "x"], "no effect"),
        (&["--prune", "0.4", "--prune-min-tokens", "few"], "a number, auto"),
        (&["--prune", "0.4", "--prune-skip", "30"], "nothing to prune"),
        (&["--prune", "0.4", "--prune-skip", "20"], "skip fewer"),
        (&["--prune-answer", "0.4"], "--prune R"),
        (&["--prune", "0.4", "--prune-answer", "0.9"], "expected 0 to 0.8"),
        (&["--prune", "0.4", "--prune-method", "flap", "--prune-answer", "0.2"], "one mask for prompts and answers"),
        (&["--prune", "0.4", "--prune-method", "flap", "--prune-plan", "depth"], "no effect"),
        (&["--prune", "0.4", "--prune-plan", "depth", "--prune-mlp-only"], "give one"),
        (&["--prune", "0.4", "--prune-multiple", "2000"], "1536 channels"),
    ] {
        let mut args = vec!["-m", model.to_str().unwrap(), "-p", "x", "-n", "1"];
        args.extend(flags);
        let line = refused(&args, 2);
        assert!(line.contains(reason), "{flags:?}: {line}");
    }
}

#[test]
fn dumps_that_are_not_this_models_are_refused() {
    let _turn = turn();
    let model = tiny("replays", Type::F32, 2);
    let path = DIR.path().join("replays.json");
    let name = path.to_str().unwrap();
    let run = |more: &[&'static str]| {
        let mut args = vec!["-m", &model, "-p", PROMPT, "-n", "4", "-no-cnv", "--prune", "0.4", "--prune-skip", "1"];
        args.extend(more);
        args.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let with = |args: &[String], flag: &str| {
        let mut args: Vec<String> = args.to_vec();
        args.extend([flag.to_owned(), name.to_owned()]);
        args
    };
    let strs = |v: &[String]| pp_run(&v.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(strs(&with(&run(&["--prune-min-tokens", "2"]), "--prune-dump")).status.success());
    let good = fs::read_to_string(&path).unwrap();
    let replay = with(&run(&[]), "--prune-replay");
    assert!(strs(&replay).status.success());
    for (bad, reason) in [
        (good.replacen("\"kept\":[", "\"kept\":[511000,", 1), "no ascending list"),
        (good.replacen("\"model\":\"", "\"model\":\"0", 1), "another model"),
        ("{}".to_owned(), "no dump"),
        (good[..good.len() / 2].to_owned(), "no dump"),
        (good.replacen("\"layer\":4", "\"layer\":-4", 1), "no dump"),
    ] {
        fs::write(&path, bad).unwrap();
        let out = strs(&replay);
        let err = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(65), "{reason}: {err}");
        assert!(err.contains(reason), "{reason}: {err}");
    }
}

/// Methods whose masks are the same for all batches, on blocks of which nothing, or all or nothing, can be left out.
#[test]
fn every_method_runs_on_experts_and_on_shared_keys() {
    let _turn = turn();
    let file = text("text");
    for arch in [Arch::GptOss, Arch::Gemma4] {
        let model = tiny_of(arch, &format!("methods-{arch:?}"), Type::F32, 2);
        ok(&["calibrate", "-m", &model, "--seqs", "4", "--seq-len", "32", "--no-positions"]);
        let run = |method: &str, ratio: &str| {
            let args =
                ["perplexity", "-m", &model, "-f", &file, "-c", "128", "--chunks", "1", "--kl", "--prune", ratio];
            let (out, _) = ok(&[&args[..], &["--prune-method", method, "--prune-skip", "1"]].concat());
            number_after(&out, "Mean    KLD:")
        };
        for method in ["pp", "full-batch", "static", "wanda-sp", "flap", "flap-as-coded"] {
            let (little, much) = (run(method, "0.1"), run(method, "0.6"));
            assert!(little < much, "{arch:?} {method}: {little} {much}");
        }
        // What is left out by the costs that were measured; of five layers with shared keys a third is the least.
        let kept = |ratio: &str| {
            let args = ["-m", &model, "-p", PROMPT, "-n", "4", "-no-cnv", "--temp", "0", "--prune", ratio];
            let (_, err) = ok(&[&args[..], &["--prune-min-tokens", "2", "--prune-plan", "calibrated"]].concat());
            err.split("kept ").nth(1).unwrap().split('%').next().unwrap().parse::<f64>().unwrap()
        };
        let (little, much) = (kept("0.06"), kept("0.12"));
        assert!(if arch == Arch::GptOss { little > much } else { little <= 67.0 }, "{arch:?}: {little} {much}");
    }
    // A dump of another model's shape, in which a block with another layer's keys keeps some of its heads.
    let model = tiny_of(Arch::Gemma4, "shared", Type::F32, 2);
    let path = DIR.path().join("shared.json");
    let dump = path.to_str().unwrap();
    let base = [
        "-m",
        &model,
        "-p",
        PROMPT,
        "-n",
        "2",
        "-no-cnv",
        "--prune",
        "0.4",
        "--prune-min-tokens",
        "2",
        "--prune-skip",
        "1",
    ];
    ok(&[&base[..], &["--prune-dump", dump]].concat());
    let text = fs::read_to_string(&path).unwrap();
    let dropped = r#""layer":4,"block":"attn","kept":[]"#;
    assert!(text.contains(dropped));
    fs::write(&path, text.replace(dropped, r#""layer":4,"block":"attn","kept":[0,1]"#)).unwrap();
    let line = refused(&[&base[..], &["--prune-replay", dump]].concat(), 65);
    assert!(line.contains("layer 4 keeps"), "{line}");
}

#[test]
fn short_prompts_say_that_they_ran_whole() {
    let _turn = turn();
    let model = tiny("short", Type::F32, 2);
    let args = [
        "-m",
        &model,
        "-p",
        "a b",
        "-n",
        "4",
        "-no-cnv",
        "--prune",
        "0.4",
        "--prune-skip",
        "1",
        "--prune-min-tokens",
        "64",
    ];
    let (_, err) = ok(&args);
    assert!(err.contains("dense: prompt below break-even (64 tokens)"), "{err}");
    // Measured: whichever way it went, it is said.
    let (_, err) = ok(&args[..args.len() - 2]);
    assert!(err.contains("dense: ") || err.contains("probe "), "{err}");
}

#[test]
fn what_can_be_pruned_is_listed() {
    let (out, _) = ok(&["show", "--prunable", smollm2().to_str().unwrap()]);
    for part in ["9 query heads of width 64", "1536 channels", "Q4_1", "Q8_0", "30 layers"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

/// The costs in a calibration file.
fn costs(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let mut costs = serde_json::from_slice::<Value>(&bytes[16..16 + length]).unwrap()["costs"].take();
    // How long something takes is never the same.
    costs["curve"].as_array_mut().unwrap().iter_mut().for_each(|p| p["time"].take().as_f64().map(|_| ()).unwrap());
    costs
}

#[test]
fn a_model_has_a_plan_of_its_own() {
    let _turn = turn();
    let model = tiny("costs", Type::Q8_0, 2);
    let sidecar = Path::new(&model).with_extension("ppcal");
    let part = Path::new(&model).with_extension("ppcal.part");
    let prompt = PROMPT.repeat(4);
    let base = ["-m", &model, "-p", &prompt, "-n", "4", "-no-cnv", "--temp", "0", "-c", "2048", "-ub", "64"];
    let run = |more: &[&str]| ok(&[&base[..], &["--prune-min-tokens", "2"], more].concat());
    let (whole, _) = ok(&base);
    let (answer, err) = run(&["--prune", "auto"]);
    assert!(answer == whole && err.contains("reading is dense") && err.contains("pp-run calibrate"), "{err}");
    assert!(
        refused(&[&base[..], &["--prune", "0.3", "--prune-plan", "calibrated"]].concat(), 66).contains("calibrate")
    );

    let calibrate = ["calibrate", "-m", &model, "--seqs", "4", "--seq-len", "32", "--no-positions"];
    // One that is ended in the middle keeps what it has, and the next one goes on with that.
    let mut child = common::pp_run().args(calibrate).spawn().unwrap();
    while !part.exists() {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended without a part");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success() && child.wait().unwrap().code() == Some(130) && part.exists() && !sidecar.exists());
    let (table, _) = ok(&calibrate);
    assert!(table.contains("left out") && table.contains("30%") && !part.exists(), "{table}");
    let measured = costs(&sidecar);
    ok(&calibrate);
    assert_eq!(costs(&sidecar), measured, "what is measured in parts is what is measured at once");

    let (out, err) = run(&["--prune", "auto:1000", "--output-format", "json"]);
    let object: Value = serde_json::from_str(&out).unwrap();
    let line = object["prune"].as_str().unwrap();
    assert!(object["prune_expected_kl"].is_f64() && line.contains("at an expected KL of"), "{object} {err}");
    // It was not measured how quantisations of it diverge.
    assert!(line.contains(" of Llama-3-8B") && table.contains(" of Llama-3-8B\n"), "{line}\n{table}");
    // 60% is the end of the curve.
    let (_, err) = run(&["--prune", "auto:1000", "--prune-guard", "1e-12"]);
    assert!(err.contains("guard: KL ") && !err.contains("60% left out of the rest"), "{err}");
    let (guarded, err) = run(&["--prune", "0.3", "--prune-plan", "calibrated", "--prune-guard", "1000"]);
    assert!(err.contains("30% left out of the rest"), "{err}");
    let dump = DIR.path().join("guarded.json");
    let dump = dump.to_str().unwrap();
    let guard = ["--prune", "0.3", "--prune-plan", "calibrated", "--prune-guard", "1000", "--prune-dump", dump];
    assert_eq!(run(&guard).0, guarded);
    assert_eq!(ok(&[&base[..], &["--prune", "0.3", "--prune-replay", dump]].concat()).0, guarded);
    for (more, reason) in [
        (&["--prune", "auto:0"][..], "auto:KL"),
        (&["--prune", "auto", "--prune-plan", "depth"], "the model's own plan"),
        (&["--prune", "auto", "--prune-method", "flap"], "not measured"),
        (&["--prune", "0.3", "--prune-guard", "0.1"], "the model's own plan"),
        (&["--prune", "auto", "--prune-guard", "0"], "more than 0"),
        (&["--prune", "auto", "--prune-skip", "1"], "the plan says"),
    ] {
        let line = refused(&[&base[..], more].concat(), 2);
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn a_model_whose_quantisations_were_measured_has_a_scale_of_its_own() {
    let words = |path: &Path| load(path).scale().in_words(0.0042);
    assert_eq!(words(&smollm2()), "as Q8_0 of this model");
    assert_eq!(words(&gemma3()), "between Q8_0 and Q6_K of Llama-3-8B");
}

/// Rows of different lengths side by side: the tokens that fill up the shorter ones have no part in what is kept. Of the first pruned block,
/// which gets what the dense model computes, the energies are known.
#[test]
fn tokens_that_fill_up_rows_have_no_part_in_what_is_kept() {
    let _turn = turn();
    let model = common::load(&smollm2());
    let context = ContextOptions { n_ctx: Some(256), exact: true, ..ContextOptions::new(2) };
    let mut session = Session::new(&model, &context, 2, 64, Default::default()).unwrap();
    let long: Vec<i32> = (0..12).map(|i| 1000 + 37 * i).collect();
    let short: Vec<i32> = (0..5).map(|i| 5000 + 91 * i).collect();
    let block = Block { il: 3, kind: BlockKind::Mlp };
    let mut energy = |tokens: &[i32]| session.moments(&[tokens], false).unwrap()[&block].energy.clone();
    let (of_long, of_short) = (energy(&long), energy(&short));
    let options = PruneOptions {
        method: Method::FullBatch,
        history: HistoryKind::None,
        mlp_only: true,
        min_tokens: Some(2),
        ..PruneOptions::paper(0.4)
    };
    let Mlp::Gated { down, .. } = &model.layers()[3].mlp else { panic!("a gated MLP") };
    let constants = Formula::Ppsp.constants(&down.weight.rows, 2);
    let score = |k: usize| (12.0 * of_long[k] + 5.0 * of_short[k]) * constants[k];
    let mut order: Vec<i32> = (0..constants.len() as i32).collect();
    order.sort_by(|&a, &b| score(b as usize).total_cmp(&score(a as usize)));
    let setup = prune::prepare(&options, model.dims(), model.layers(), Sources::default(), 2).unwrap();
    session.set_pruning(Some(setup)).unwrap();
    let mut differ = |seqs: &[&[i32]]| {
        session.states(seqs, 0, true).unwrap();
        let kept: BTreeSet<i32> = session.kept().unwrap().0[&block].iter().copied().collect();
        order[..kept.len()].iter().filter(|k| !kept.contains(k)).count()
    };
    let filled: Vec<i32> = short.iter().copied().chain([0; 7]).collect();
    // Rounding decides between near equals.
    let (as_text, as_filling) = (differ(&[&long, &filled]), differ(&[&long, &short]));
    assert!(as_filling <= 2 && as_text > 20, "{as_filling} {as_text}");
}
