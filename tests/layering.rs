//! The order of the source: a module uses only what stands below it (see `src/lib.rs`), and files do not use each other in a circle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from top to bottom. `main.rs` and `lib.rs` stand above them all.
const LAYERS: &[&str] = &[
    "cli",
    "commands",
    "log",
    "chat",
    "eval",
    "generate",
    "engine",
    "model",
    "graph",
    "prune",
    "weights",
    "sampler",
    "constraint",
    "stats",
    "tokenizer",
    "gguf",
    "system",
    "error",
];

/// Names of modules from the crate's root on.
type Module = Vec<String>;

/// A source file, without its tests and comments.
struct Source {
    /// Below `src`
    file: PathBuf,
    module: Module,
    uses: Vec<Use>,
    /// All of it
    code: String,
    /// What is left of it without `use` declarations
    rest: String,
}

/// One name that a `use` declaration brings in.
struct Use {
    public: bool,
    path: Vec<String>,
    /// What it is called here
    name: String,
}

/// All source files.
struct Sources {
    all: Vec<Source>,
    by_module: HashMap<Module, usize>,
}

impl Sources {
    fn read() -> Sources {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        find(&root, &mut files);
        let all: Vec<Source> = files.iter().map(|file| Source::read(&root, file)).collect();
        let by_module = all.iter().enumerate().map(|(i, s)| (s.module.clone(), i)).collect();
        Sources { all, by_module }
    }

    fn is_module(&self, path: &[String]) -> bool {
        self.by_module.contains_key(path)
    }

    /// A path that a file names, from the crate's root on; `None` if it leads into another crate or to an item of the file's own.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|p| *p == "super").count();
        let start: &[String] = match path[0].as_str() {
            "crate" => &[],
            "super" => &module[..module.len() - supers],
            "self" => module,
            name if self.is_module(&[module, &[name.to_owned()]].concat()) => return Some([module, path].concat()),
            _ => return None,
        };
        Some([start, &path[supers.max(1)..]].concat())
    }

    /// The module whose file defines what a path names, and whether the path names that module itself. What a file brings in by `use` is
    /// defined elsewhere: that is followed.
    fn resolve(&self, path: &[String]) -> (Module, bool) {
        let mut module = Module::new();
        for (i, name) in path.iter().enumerate() {
            module.push(name.clone());
            if self.is_module(&module) {
                continue;
            }
            module.pop();
            let source = &self.all[self.by_module[&module]];
            let brought_in = source.uses.iter().find(|u| u.name == *name);
            return match brought_in.and_then(|u| self.absolute(&module, &u.path)) {
                Some(target) => self.resolve(&[&target, &path[i + 1..]].concat()),
                None => (module, false),
            };
        }
        (module, true)
    }

    /// The files that a file uses.
    fn used_by(&self, source: &Source) -> BTreeSet<usize> {
        let mut used = BTreeSet::new();
        let mut paths: Vec<Vec<String>> = Vec::new();
        for u in &source.uses {
            let Some(path) = self.absolute(&source.module, &u.path) else { continue };
            let (target, whole) = self.resolve(&path);
            // A table of what is below is no use of it.
            if u.public && target.len() > source.module.len() && target.starts_with(&source.module) {
                continue;
            }
            // A module that is brought in is used where something of it is named.
            let of_it: Vec<_> = qualified(&source.rest).filter(|p| whole && p[0] == u.name).collect();
            match of_it.is_empty() {
                true => paths.push(path),
                false => paths.extend(of_it.iter().map(|p| [&path, &p[1..]].concat())),
            }
        }
        let brought_in = |name: &String| source.uses.iter().any(|u| u.name == *name);
        let inline = qualified(&source.rest).filter(|p| !brought_in(&p[0]));
        paths.extend(inline.filter_map(|p| self.absolute(&source.module, &p)));
        for path in paths {
            used.insert(self.by_module[&self.resolve(&path).0]);
        }
        used.remove(&self.by_module[&source.module]);
        used
    }
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let file = path.strip_prefix(root).unwrap().to_owned();
        let mut module: Module = file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        module.pop_if(|last| last == "mod" || (last == "lib" && file.iter().count() == 1));
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let code = lines.join("\n");
        let (mut uses, mut rest) = (Vec::new(), String::new());
        let mut after = code.as_str();
        while !after.is_empty() {
            let line = after.trim_start();
            let public = line.starts_with("pub");
            let declared = match line.split_once("use ") {
                Some((before, tree)) if before.is_empty() || (public && !before.contains(['\n', '{', ';'])) => {
                    Some(tree)
                }
                _ => None,
            };
            match declared.and_then(|tree| tree.split_once(';')) {
                Some((tree, next)) => {
                    expand(public, &[], &tree.split_whitespace().collect::<Vec<_>>().join(" "), &mut uses);
                    after = next;
                }
                None => {
                    let (line, next) = after.split_once('\n').unwrap_or((after, ""));
                    rest.push_str(line);
                    rest.push('\n');
                    after = next;
                }
            }
        }
        Source { file, module, uses, code, rest }
    }

    /// The top-level module; empty for `lib.rs`.
    fn top(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }
}

fn find(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names that a tree of a `use` declaration brings in: `a::{b, c::d as e}`.
fn expand(public: bool, before: &[String], tree: &str, uses: &mut Vec<Use>) {
    let tree = tree.trim();
    if let Some((prefix, group)) = tree.split_once('{') {
        let prefix = prefix.split("::").map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned);
        let before: Vec<String> = before.iter().cloned().chain(prefix).collect();
        let group = group.strip_suffix('}').unwrap_or(group);
        let (mut depth, mut from) = (0, 0);
        for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(public, &before, &group[from..at], uses);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    if tree.is_empty() {
        return;
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias)));
    let mut path: Vec<String> = before.iter().cloned().chain(path.split("::").map(|p| p.trim().to_owned())).collect();
    if path.len() > 1 {
        path.pop_if(|last| last == "self");
    }
    let name = alias.map_or_else(|| path.last().unwrap().clone(), |alias| alias.trim().to_owned());
    uses.push(Use { public, path, name });
}

/// Paths of several names in a text: `a::b::c`.
fn qualified(code: &str) -> impl Iterator<Item = Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let words = code.match_indices("::").filter_map(move |(at, _)| {
        let start = code[..at].rfind(|c: char| !is_name(c)).map_or(0, |i| i + 1);
        // Only where a path begins.
        (start < at && !code[..start].ends_with("::")).then_some(start)
    });
    words.map(move |start| {
        let mut path = Vec::new();
        let mut rest = &code[start..];
        loop {
            let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
            if end == 0 {
                return path;
            }
            path.push(rest[..end].to_owned());
            match rest[end..].strip_prefix("::") {
                Some(after) => rest = after,
                None => return path,
            }
        }
    })
}

/// The place of a module from the top.
fn layer(module: &str) -> usize {
    LAYERS.iter().position(|l| *l == module).unwrap_or_else(|| panic!("module '{module}' has no layer"))
}

#[test]
fn imports_point_down() {
    let sources = Sources::read();
    let mut checked = 0;
    for source in sources.all.iter().filter(|s| !["", "main"].contains(&s.top())) {
        for i in sources.used_by(source) {
            let used = &sources.all[i];
            if used.top() != source.top() {
                checked += 1;
                let (from, to) = (source.file.display(), used.file.display());
                assert!(layer(used.top()) > layer(source.top()), "{from} uses {to}, which is not below it");
            }
        }
    }
    assert!(checked > 100, "imports are found at all ({checked})");
}

#[test]
fn files_do_not_use_each_other_in_circles() {
    let sources = Sources::read();
    let uses: BTreeMap<usize, Vec<usize>> =
        sources.all.iter().enumerate().map(|(i, s)| (i, sources.used_by(s).into_iter().collect())).collect();
    assert!(uses.values().map(Vec::len).sum::<usize>() > 200, "imports are found at all");
    let mut done = BTreeSet::new();
    for &start in uses.keys() {
        if let Some(circle) = circle(&uses, start, &mut Vec::new(), &mut done) {
            let files: Vec<String> = circle.iter().map(|&i| sources.all[i].file.display().to_string()).collect();
            panic!("these files use each other in a circle: {}", files.join(" -> "));
        }
    }
}

/// A circle that can be reached from a file; `path` leads there, and what is `done` leads to none.
fn circle(
    uses: &BTreeMap<usize, Vec<usize>>,
    file: usize,
    path: &mut Vec<usize>,
    done: &mut BTreeSet<usize>,
) -> Option<Vec<usize>> {
    if let Some(at) = path.iter().position(|&p| p == file) {
        return Some([&path[at..], &[file]].concat());
    }
    if done.contains(&file) {
        return None;
    }
    path.push(file);
    let found = uses[&file].iter().find_map(|&next| circle(uses, next, path, done));
    path.pop();
    done.insert(file);
    found
}

#[test]
fn ffi_and_unsafe_are_in_vendor_only() {
    for source in Sources::read().all {
        for word in ["unsafe {", "unsafe fn", "unsafe impl", "llama_cpp_sys"] {
            assert!(!source.code.contains(word), "{}: '{word}' belongs in vendor/", source.file.display());
        }
    }
}

#[test]
fn only_commands_write_to_stdout() {
    for source in Sources::read().all.iter().filter(|s| s.top() != "commands") {
        for word in ["println!", "print!", "stdout().lock", "stdout().write"] {
            let written = source.code.match_indices(word).any(|(at, _)| !source.code[..at].ends_with('e'));
            assert!(!written, "{}: '{word}' belongs in src/commands", source.file.display());
        }
    }
}
