//! `pp-run` without a model: which models are on this machine, and how to run one.
//!
//! It looks where people and other programs keep GGUF files. The files may be anybody's: names are escaped, headers are checked by
//! [`Gguf::open`], and the search ends at a fixed depth and after a fixed number of entries.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::output::print;
use crate::engine::{libllama, runs_on_own};
use crate::error::{Error, Result, escape, shown};
use crate::gguf::Gguf;
use crate::model::{RopeOptions, RunBy, description, read_hparams};
use crate::system::memory;
use crate::system::places::{self, Env, env};

/// How deep directories are searched, and how many of their entries are looked at.
const MAX_DEPTH: usize = 5;
const MAX_ENTRIES: usize = 20_000;

/// Models that are listed.
const MAX_LISTED: usize = 50;

/// Time for reading all headers: a list of models must not wait for a slow disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest path that makes the column of paths wider.
const MAX_COLUMN: usize = 64;

/// What is said where there is no model.
const HOW_TO_GET_ONE: &str = "\
No models were found here. A model is a GGUF file:
  models/get             in pp-run's source, fetches a small one, of 98 MB
  https://huggingface.co/models?library=gguf    has others, for ./models or ~/models
  pp-run FILE \"question\"                      runs one, wherever it is
";

/// Lists the models.
pub fn run() -> Result<()> {
    print(&listing(&find(&env)))
}

/// The error of a run without a model, which names one that there is.
pub fn missing() -> Error {
    let start = Instant::now();
    let found = find(&env);
    let mut paths: Vec<&PathBuf> = found.keys().collect();
    paths.sort_by_key(|p| p.as_os_str().len());
    let mut quick = paths.iter().take(MAX_LISTED).take_while(|_| start.elapsed() < PATIENCE);
    match quick.find(|p| describe(p).is_ok()) {
        Some(path) => {
            let model = quoted(path);
            Error::usage(format!("no model: pp-run -m {model} -p \"prompt\" (or PP_ARG_MODEL; see --help)"))
        }
        None => Error::usage(
            "no model: pp-run -m MODEL.gguf -p \"prompt\" (or PP_ARG_MODEL; pp-run alone says how to get a model)",
        ),
    }
}

/// What was found: paths, and names that other programs have for them.
type Found = BTreeMap<PathBuf, Option<String>>;

fn listing(found: &Found) -> String {
    if found.is_empty() {
        return HOW_TO_GET_ONE.to_owned();
    }
    let start = Instant::now();
    let paths: Vec<String> = found.keys().take(MAX_LISTED).map(|p| quoted(p)).collect();
    let widths = paths.iter().map(|p| p.chars().count());
    let width = widths.filter(|&w| w <= MAX_COLUMN).max().unwrap_or(0);
    let (mut out, mut good) = ("Models that were found:\n\n".to_owned(), Vec::new());
    for ((path, name), quoted) in found.iter().zip(&paths) {
        let in_time = start.elapsed() < PATIENCE;
        let (mut n_bytes, mut what) = (fs::metadata(path).map_or(0, |m| m.len()), Vec::new());
        what.extend(name.clone());
        match in_time.then(|| describe(path)) {
            Some(Ok(model)) => {
                n_bytes = model.n_bytes;
                what.extend(model.name);
                what.push(model.description);
                good.push(quoted.as_str());
            }
            Some(Err(reason)) => what.push(format!("cannot be run: {reason}")),
            None => {}
        }
        let line = format!("{:>12}  {quoted:<width$}  {}", memory::human(n_bytes), escape(&what.join(", ")));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if found.len() > MAX_LISTED {
        out.push_str(&format!("\nand {} more\n", found.len() - MAX_LISTED));
    }
    let example = good.into_iter().min_by_key(|q| q.len()).unwrap_or("FILE.gguf");
    out.push_str(&format!("\nTo chat:          pp-run -m {example}\n"));
    out.push_str(&format!("For one answer:   pp-run -m {example} -p \"prompt\"\n"));
    out
}

/// A model that pp-run runs.
struct Model {
    n_bytes: u64,
    name: Option<String>,
    description: String,
}

/// What a file's header says; an error is the reason why pp-run does not run it.
fn describe(path: &Path) -> Result<Model, String> {
    let read = || {
        let gguf = Gguf::open(path)?;
        let is_own = runs_on_own(&gguf, RunBy::Auto);
        let description = match is_own {
            true => read_hparams(&gguf, &RopeOptions::default()).map(|_| description(&gguf))?,
            false => libllama::require_file(&gguf).map(|()| description(&gguf) + ", by libllama")?,
        };
        let name = gguf.metadata().lossy("general.name").map(|n| shown(&n).into_owned());
        Ok(Model { n_bytes: gguf.file_bytes(), name, description })
    };
    read().map_err(|e: Error| {
        let message = e.to_string();
        // The list names the file in the same line already.
        let reason = message.strip_prefix(&escape(&format!("{}: ", path.display()))).unwrap_or(&message);
        shown(reason).into_owned()
    })
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    // Only a NUL cannot be quoted, and a path has none.
    escape(&shlex::try_quote(&text).unwrap_or_default())
}

/// The models in all places, each once.
fn find(env: Env) -> Found {
    let mut seen = HashSet::new();
    let mut is_new = |path: &Path| path.canonicalize().is_ok_and(|p| seen.insert(p));
    let mut found = Found::new();
    for place in places(env) {
        for path in walk(&place).into_iter().filter(|p| is_model(p)) {
            if is_new(&path) {
                found.insert(path, None);
            }
        }
    }
    for store in ollama_stores(env) {
        for (path, name) in ollama(&store) {
            if is_new(&path) {
                found.insert(path, Some(name));
            }
        }
    }
    found
}

/// Where models are kept, those of pp-run first.
fn places(env: Env) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = ["./models", "."].map(PathBuf::from).into();
    let home = env("HOME").map(PathBuf::from);
    places.extend(home.iter().map(|h| h.join("models")));
    places.extend(places::models(env));
    // Where variables say, and where other programs put them without.
    let set = |name: &str| env(name).map(PathBuf::from);
    places.extend(["LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().filter_map(set));
    places.extend(set("HF_HOME").map(|h| h.join("hub")));
    places.extend(set("XDG_CACHE_HOME").iter().flat_map(|c| ["llama.cpp", "huggingface/hub"].map(|d| c.join(d))));
    let of_others = [
        ".cache/llama.cpp",
        "Library/Caches/llama.cpp",
        ".cache/huggingface/hub",
        ".lmstudio/models",
        ".cache/lm-studio/models",
        ".local/share/nomic.ai/GPT4All",
        "jan/models",
    ];
    places.extend(home.iter().flat_map(|h| of_others.map(|d| h.join(d))));
    places
}

fn ollama_stores(env: Env) -> Vec<PathBuf> {
    let mut stores = vec![PathBuf::from("/usr/share/ollama/.ollama/models")];
    stores.extend(env("OLLAMA_MODELS").map(PathBuf::from));
    stores.extend(env("HOME").map(|h| PathBuf::from(h).join(".ollama/models")));
    stores
}

/// The files under a directory, links to files included. Directories that are hidden or links are left out.
///
/// Breadth first, so that what is near is found before the entries that are looked at are used up.
fn walk(place: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = VecDeque::from([(place.to_owned(), 1)]);
    let mut left = MAX_ENTRIES;
    while let Some((directory, depth)) = directories.pop_front() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if left == 0 {
                return files;
            }
            left -= 1;
            let Ok(ty) = entry.file_type() else { continue };
            let path = entry.path();
            if ty.is_dir() {
                if depth < MAX_DEPTH && !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    directories.push_back((path, depth + 1));
                }
            } else if ty.is_file() || (ty.is_symlink() && path.is_file()) {
                files.push(path);
            }
        }
    }
    files
}

/// Whether a file's name is a model's: no part but the first of several, and no projector of images.
fn is_model(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(".gguf") else { return false };
    let is_number = |t: &str| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit());
    let part = stem.rsplit_once("-of-").filter(|(_, count)| is_number(count));
    let part = part.and_then(|(first, _)| first.rsplit_once('-')).map(|(_, no)| no).filter(|no| is_number(no));
    part.is_none_or(|no| no == "00001") && !name.to_ascii_lowercase().contains("mmproj")
}

/// The models of an ollama store with ollama's names for them: each manifest names the file of its weights by a hash.
fn ollama(store: &Path) -> Vec<(PathBuf, String)> {
    let manifests = store.join("manifests");
    let model = |manifest: PathBuf| {
        let hash = weights(&manifest)?;
        let parts: Vec<_> = manifest.strip_prefix(&manifests).ok()?.iter().map(|p| p.to_string_lossy()).collect();
        let [.., model, tag] = &parts[..] else { return None };
        let path = store.join("blobs").join(format!("sha256-{hash}"));
        Some((path, shown(&format!("ollama's {model}:{tag}")).into_owned()))
    };
    walk(&manifests).into_iter().filter_map(model).collect()
}

/// The hash of the weights that a manifest names.
fn weights(manifest: &Path) -> Option<String> {
    /// Manifests have some hundred bytes.
    const MAX_BYTES: u64 = 64 << 10;
    let mut bytes = Vec::new();
    fs::File::open(manifest).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let is_model = |layer: &&serde_json::Value| layer["mediaType"] == "application/vnd.ollama.image.model";
    let layer = manifest["layers"].as_array()?.iter().find(is_model)?;
    let hash = layer["digest"].as_str()?.strip_prefix("sha256:")?;
    // The hash becomes a part of a path: it must not lead elsewhere.
    hash.bytes().all(|b| b.is_ascii_hexdigit()).then(|| hash.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models() {
        for name in ["a.gguf", "a-00001-of-00003.gguf", "a-2-of-3.gguf", "a-of-00003.gguf", "-of-.gguf"] {
            assert!(is_model(Path::new(name)), "{name}");
        }
        for name in ["a.bin", "a-00002-of-00003.gguf", "mmproj-a-f16.gguf", "a.MMPROJ.gguf", "gguf", ""] {
            assert!(!is_model(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn walks_end() {
        let dir = tempfile::tempdir().unwrap();
        let deep = |n: usize| (1..n).fold(dir.path().to_owned(), |path, i| path.join(i.to_string()));
        fs::create_dir_all(deep(MAX_DEPTH + 1)).unwrap();
        fs::create_dir(dir.path().join(".hidden")).unwrap();
        for directory in [deep(1), deep(MAX_DEPTH), deep(MAX_DEPTH + 1), dir.path().join(".hidden")] {
            fs::write(directory.join("x"), "").unwrap();
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path(), dir.path().join("round")).unwrap();
            std::os::unix::fs::symlink(dir.path().join("gone"), dir.path().join("nothing")).unwrap();
            std::os::unix::fs::symlink(dir.path().join("x"), dir.path().join("link")).unwrap();
        }
        let mut files = walk(dir.path());
        files.sort();
        let mut expected = vec![deep(MAX_DEPTH).join("x"), dir.path().join("x")];
        #[cfg(unix)]
        expected.insert(1, dir.path().join("link"));
        assert_eq!(files, expected);
        assert!(walk(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn manifests_lead_to_blobs_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest");
        let manifest = |digest: &str| {
            let kind = |k: &str| format!("application/vnd.ollama.image.{k}");
            let layers = serde_json::json!([
                {"mediaType": kind("license"), "digest": "sha256:00"},
                {"mediaType": kind("model"), "digest": digest},
            ]);
            fs::write(&path, serde_json::json!({ "layers": layers }).to_string()).unwrap();
            weights(&path)
        };
        assert_eq!(manifest("sha256:ab12").as_deref(), Some("ab12"));
        assert_eq!(manifest("sha256:../../x"), None);
        assert_eq!(manifest("md5:ab"), None);
        for text in ["", "{", "[]", "{\"layers\": 3}", "{\"layers\": [3, {\"mediaType\": 4}]}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(weights(&path), None, "{text}");
        }
        assert_eq!(weights(dir.path()), None);
    }

    #[test]
    fn without_models_it_says_how_to_get_one_in_four_lines() {
        let text = listing(&Found::new());
        assert!(text.contains("models/get") && text.contains("./models") && text.lines().count() == 4, "{text}");
    }

    #[test]
    fn where_other_programs_keep_theirs() {
        let hub = "models--org--name/snapshots/0123abcd/hub.gguf";
        let cases: [(&str, &str, &str); 11] = [
            ("HOME", "", ".cache/llama.cpp/a.gguf"),
            ("HOME", "", ".lmstudio/models/publisher/repository/b.gguf"),
            ("HOME", "", ".cache/lm-studio/models/publisher/repository/c.gguf"),
            ("HOME", ".cache/huggingface/hub", hub),
            ("LLAMA_CACHE", "", "d.gguf"),
            ("HF_HOME", "hub", hub),
            ("HF_HUB_CACHE", "", hub),
            ("HUGGINGFACE_HUB_CACHE", "", hub),
            ("XDG_CACHE_HOME", "huggingface/hub", hub),
            ("XDG_DATA_HOME", "pp-run/models", "e.gguf"),
            ("HOME", "models", "f.gguf"),
        ];
        for (variable, folder, file) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(folder).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            let env = |name: &str| (name == variable).then(|| dir.path().as_os_str().to_owned());
            assert!(find(&env).contains_key(&path), "{variable} {folder} {file}");
        }
        // ollama's are named by manifests. What is in two places, by a link, is found once.
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blobs/sha256-ab12");
        let manifest = dir.path().join("manifests/registry.ollama.ai/library/tiny/latest");
        for path in [&blob, &manifest] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&blob, "").unwrap();
        let layer = serde_json::json!({"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ab12"});
        fs::write(&manifest, serde_json::json!({ "layers": [layer] }).to_string()).unwrap();
        let env =
            |name: &str| ["OLLAMA_MODELS", "LLAMA_CACHE"].contains(&name).then(|| dir.path().as_os_str().to_owned());
        assert_eq!(find(&env).get(&blob), Some(&Some("ollama's tiny:latest".to_owned())));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&blob, dir.path().join("link.gguf")).unwrap();
            let found = find(&env);
            assert!(found.contains_key(&dir.path().join("link.gguf")) && !found.contains_key(&blob), "{found:?}");
        }
    }
}
