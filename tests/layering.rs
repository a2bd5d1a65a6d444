//! The layers of the source: a module uses only what stands below it. See `src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from top to bottom; those on one line do not use each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["commands"],
    &["log"],
    &["chat", "generate"],
    &["session"],
    &["engine", "prompt_cache"],
    &["model"],
    &["graph"],
    &["calibration"],
    &["prune"],
    &["blocks"],
    &["weights"],
    &["sampler", "stats"],
    &["tokenizer"],
    &["gguf"],
    &["system"],
    &["error"],
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|l| l.contains(&module)).unwrap_or_else(|| panic!("module '{module}' has no layer"))
}

/// Source files under `src` with their top-level module and their code without tests and comments.
fn modules() -> Vec<(PathBuf, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut modules = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        modules.push((relative.to_owned(), first, code.join("\n")));
    }
    modules
}

#[test]
fn imports_point_down() {
    let mut checked = 0;
    for (path, module, code) in modules() {
        if module == "main" || module == "lib" {
            continue;
        }
        for (at, _) in code.match_indices("crate::") {
            let used = &code[at + "crate::".len()..];
            let name: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if name.is_empty() || name == module {
                continue;
            }
            checked += 1;
            assert!(
                layer(&name) > layer(&module),
                "{}: '{module}' uses '{name}', which is not below it",
                path.display()
            );
        }
    }
    assert!(checked > 20, "imports are found at all ({checked})");
}

#[test]
fn ffi_and_unsafe_are_in_vendor_only() {
    for (path, _, code) in modules() {
        for word in ["unsafe {", "unsafe fn", "unsafe impl", "llama_cpp_sys"] {
            assert!(!code.contains(word), "{}: '{word}' belongs in vendor/", path.display());
        }
    }
}

#[test]
fn only_commands_write_to_stdout() {
    for (path, module, code) in modules() {
        if module == "commands" {
            continue;
        }
        for word in ["println!", "print!", "stdout().lock", "stdout().write"] {
            let written = code.match_indices(word).any(|(at, _)| !code[..at].ends_with('e'));
            assert!(!written, "{}: '{word}' belongs in src/commands", path.display());
        }
    }
}
