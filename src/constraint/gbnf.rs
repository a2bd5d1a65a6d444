//! llama.cpp's grammars (GBNF), read and written again for llguidance.
//!
//! A grammar of GBNF is one of characters. llguidance has a lexer before its parser, which would read the longest lexeme wherever it can: so
//! each lexeme here is one character, of classes that have no character in common.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

/// The last character there can be.
const LAST: u32 = 0x10_ffff;

/// Surrogates, which are no characters.
const SURROGATES: [u32; 2] = [0xd800, 0xdfff];

/// More repetitions than these are refused as a least number, and mean any number as a greatest one: llama.cpp's rule.
const MOST_REPETITIONS: u32 = 2000;

/// How deep parentheses may be nested.
const MAX_DEPTH: usize = 100;

/// How many different classes of characters there may be.
const MAX_CLASSES: usize = 2000;

/// Ranges of characters, both ends included, sorted, none next to another.
type Class = Vec<[u32; 2]>;

/// A part of a rule.
#[derive(Debug)]
enum Node {
    /// One character of the class of this number
    Class(usize),
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// So many times, or any number from so many on
    Repeat(Box<Node>, u32, Option<u32>),
}

/// The grammar of `text` in llguidance's form of Lark. The error says what is wrong, and in which line.
pub fn lark(text: &str) -> Result<String, String> {
    let mut parser = Parser { text, at: 0, names: HashMap::new(), rules: Vec::new(), classes: HashMap::new() };
    parser.rules().map_err(|e| format!("line {}: {e}", 1 + text[..parser.at].matches('\n').count()))?;
    let root = *parser.names.get("root").ok_or("there is no rule 'root'")?;
    let undefined = parser.names.iter().filter(|(_, i)| parser.rules[**i].is_none()).map(|(name, _)| name).min();
    if let Some(name) = undefined {
        return Err(format!("there is no rule '{name}'"));
    }
    let rules: Vec<Node> = parser.rules.into_iter().flatten().collect();
    let mut classes = vec![Class::new(); parser.classes.len()];
    parser.classes.into_iter().for_each(|(class, i)| classes[i] = class);
    let ends = ending(&rules, &classes);
    if !ends.contains(&root) {
        return Err("no text fits: the rule 'root' never ends".to_owned());
    }
    let (lexemes, of_class) = split(&classes);
    let mut out = format!("start: r{root}\n");
    for (i, rule) in rules.iter().enumerate().filter(|(i, _)| ends.contains(i)) {
        let body = write(rule, &ends, &of_class).expect("a rule that ends can be written");
        let _ = writeln!(out, "r{i}: {body}");
    }
    for (i, ranges) in lexemes.iter().enumerate() {
        let ranges: String = ranges.iter().map(|[a, b]| format!("\\x{{{a:x}}}-\\x{{{b:x}}}")).collect();
        let _ = writeln!(out, "C{i}: /[{ranges}]/");
    }
    Ok(out)
}

/// The rules that some text fits.
fn ending(rules: &[Node], classes: &[Class]) -> BTreeSet<usize> {
    fn ends(node: &Node, classes: &[Class], known: &BTreeSet<usize>) -> bool {
        match node {
            Node::Class(i) => !classes[*i].is_empty(),
            Node::Repeat(_, 0, _) => true,
            Node::Rule(i) => known.contains(i),
            Node::Sequence(nodes) => nodes.iter().all(|n| ends(n, classes, known)),
            Node::Choice(nodes) => nodes.iter().any(|n| ends(n, classes, known)),
            Node::Repeat(node, ..) => ends(node, classes, known),
        }
    }
    let mut known = BTreeSet::new();
    loop {
        let n = known.len();
        let more: Vec<usize> = (0..rules.len()).filter(|&i| ends(&rules[i], classes, &known)).collect();
        known.extend(more);
        if known.len() == n {
            return known;
        }
    }
}

/// Classes that have no character in common, and of which of them each of `classes` is made.
fn split(classes: &[Class]) -> (Vec<Class>, Vec<Vec<usize>>) {
    // Where some class begins, and behind the end of one.
    let cuts: BTreeSet<u32> = classes.iter().flatten().flat_map(|[a, b]| [*a, b + 1]).collect();
    let mut of: Vec<Vec<usize>> = vec![Vec::new(); cuts.len()];
    let index: HashMap<u32, usize> = cuts.iter().enumerate().map(|(i, c)| (*c, i)).collect();
    for (i, class) in classes.iter().enumerate() {
        for [a, b] in class {
            of[index[a]..index[&(b + 1)]].iter_mut().for_each(|of| of.push(i));
        }
    }
    let mut lexemes: BTreeMap<Vec<usize>, Class> = BTreeMap::new();
    let cuts: Vec<u32> = cuts.into_iter().collect();
    for (i, of) in of.into_iter().enumerate().filter(|(_, of)| !of.is_empty()) {
        lexemes.entry(of).or_default().push([cuts[i], cuts[i + 1] - 1]);
    }
    let mut of_class = vec![Vec::new(); classes.len()];
    for (i, of) in lexemes.keys().enumerate() {
        of.iter().for_each(|&class| of_class[class].push(i));
    }
    (lexemes.into_values().collect(), of_class)
}

/// A part of a rule in Lark; `None` if no text fits it.
fn write(node: &Node, ends: &BTreeSet<usize>, of_class: &[Vec<usize>]) -> Option<String> {
    let write = |node: &Node| write(node, ends, of_class);
    Some(match node {
        Node::Class(i) if of_class[*i].is_empty() => return None,
        Node::Class(i) => {
            let names: Vec<String> = of_class[*i].iter().map(|l| format!("C{l}")).collect();
            format!("({})", names.join("|"))
        }
        Node::Rule(i) => ends.contains(i).then(|| format!("r{i}"))?,
        Node::Sequence(nodes) if nodes.is_empty() => "\"\"".to_owned(),
        Node::Sequence(nodes) => nodes.iter().map(write).collect::<Option<Vec<_>>>()?.join(" "),
        Node::Choice(nodes) => {
            let choices: Vec<String> = nodes.iter().filter_map(write).collect();
            (!choices.is_empty()).then(|| format!("({})", choices.join(" | ")))?
        }
        Node::Repeat(node, least, most) => match (write(node), least, most) {
            (None, 0, _) | (Some(_), _, Some(0)) => "\"\"".to_owned(),
            (None, ..) => return None,
            (Some(text), 0, None) => format!("({text})*"),
            (Some(text), 1, None) => format!("({text})+"),
            (Some(text), least, None) => format!("({text}){{{least},}}"),
            (Some(text), least, Some(most)) => format!("({text}){{{least},{most}}}"),
        },
    })
}

/// Reads a grammar.
struct Parser<'t> {
    text: &'t str,
    /// Byte that comes next
    at: usize,
    names: HashMap<String, usize>,
    /// By number; those that were named and not yet defined are missing.
    rules: Vec<Option<Node>>,
    classes: HashMap<Class, usize>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Takes this text, if it comes next.
    fn take(&mut self, text: &str) -> bool {
        let comes = self.text[self.at..].starts_with(text);
        self.at += if comes { text.len() } else { 0 };
        comes
    }

    /// Passes spaces and comments, and line breaks where a rule does not end with its line.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => drop(self.next()),
                '\r' | '\n' if lines => drop(self.next()),
                '#' => self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at),
                _ => return,
            }
        }
    }

    fn found(&self) -> String {
        self.peek().map_or("the end".to_owned(), |c| format!("'{c}'"))
    }

    fn rules(&mut self) -> Result<(), String> {
        self.space(true);
        while self.peek().is_some() {
            let rule = self.name().ok_or_else(|| format!("a rule's name was expected, and not {}", self.found()))?;
            self.space(false);
            if !self.take("::=") {
                return Err(format!("'::=' was expected, and not {}", self.found()));
            }
            self.space(true);
            let body = self.choice(0)?;
            if !matches!(self.peek(), None | Some('\r' | '\n')) {
                return Err(format!("{} was not expected", self.found()));
            }
            self.rules[rule] = Some(body);
            self.space(true);
        }
        Ok(())
    }

    /// The number of the rule whose name comes next.
    fn name(&mut self) -> Option<usize> {
        let rest = &self.text[self.at..];
        let n = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        let name = (n > 0).then(|| rest[..n].to_owned())?;
        self.at += n;
        let new = self.rules.len();
        let rule = *self.names.entry(name).or_insert(new);
        if rule == new {
            self.rules.push(None);
        }
        Some(rule)
    }

    /// Sequences with `|` between. Inside of parentheses they may go on in the next line.
    fn choice(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("parentheses are nested deeper than {MAX_DEPTH}"));
        }
        let mut choices = vec![self.sequence(depth)?];
        while self.take("|") {
            self.space(true);
            choices.push(self.sequence(depth)?);
        }
        Ok(Node::Choice(choices))
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, String> {
        let mut nodes: Vec<Node> = Vec::new();
        while let Some(c) = self.peek() {
            let item = match c {
                '"' => {
                    self.next();
                    let mut chars = Vec::new();
                    while !self.take("\"") {
                        let c = self.character()?;
                        chars.push(Node::Class(self.class(vec![[c, c]])?));
                    }
                    Node::Sequence(chars)
                }
                '[' => self.brackets()?,
                '.' => {
                    self.next();
                    Node::Class(self.class(vec![[0, LAST]])?)
                }
                '(' => {
                    self.next();
                    self.space(true);
                    let inner = self.choice(depth + 1)?;
                    if !self.take(")") {
                        return Err(format!("')' was expected, and not {}", self.found()));
                    }
                    inner
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.times()?;
                    let node = nodes.pop().ok_or_else(|| format!("there is nothing before '{c}' to repeat"))?;
                    Node::Repeat(Box::new(node), least, most)
                }
                '<' | '!' => return Err("tokens in grammars (<...>) are not supported".to_owned()),
                _ => match self.name() {
                    Some(rule) => Node::Rule(rule),
                    None => break,
                },
            };
            nodes.push(item);
            self.space(depth > 0);
        }
        Ok(Node::Sequence(nodes))
    }

    /// `*`, `+`, `?`, `{2}`, `{2,}`, `{2,5}`
    fn times(&mut self) -> Result<(u32, Option<u32>), String> {
        let (least, most) = match self.next() {
            Some('*') => return Ok((0, None)),
            Some('+') => return Ok((1, None)),
            Some('?') => return Ok((0, Some(1))),
            _ => {
                self.space(false);
                let least = self.number()?.ok_or_else(|| format!("a number was expected, and not {}", self.found()))?;
                self.space(false);
                let most = match self.take(",") {
                    true => {
                        self.space(false);
                        self.number()?
                    }
                    false => Some(least),
                };
                self.space(false);
                (least, most)
            }
        };
        if !self.take("}") {
            return Err(format!("'}}' was expected, and not {}", self.found()));
        }
        if most.is_some_and(|most| most < least) {
            return Err(format!("{least} times at least is more than the most"));
        }
        match least > MOST_REPETITIONS {
            true => Err(format!("{least} repetitions are more than {MOST_REPETITIONS}")),
            false => Ok((least, most.filter(|&n| n <= MOST_REPETITIONS))),
        }
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let rest = &self.text[self.at..];
        let n = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = &rest[..n];
        self.at += n;
        match n {
            0 => Ok(None),
            _ => digits.parse().map(Some).map_err(|_| format!("{digits} repetitions are more than {MOST_REPETITIONS}")),
        }
    }

    /// `[a-z_]`, `[^"]`
    fn brackets(&mut self) -> Result<Node, String> {
        self.next();
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let from = self.character()?;
            let mut to = from;
            if self.text[self.at..].starts_with('-') && !self.text[self.at..].starts_with("-]") {
                self.next();
                to = self.character()?;
            }
            if to < from {
                return Err("a range of characters ends before it begins".to_owned());
            }
            ranges.push([from, to]);
        }
        let class = if negated { others(&ranges) } else { ranges };
        Ok(Node::Class(self.class(class)?))
    }

    /// A character of a text or of brackets, which may be escaped.
    fn character(&mut self) -> Result<u32, String> {
        let missing = "the grammar ends inside of a text or of brackets";
        let c = self.next().ok_or(missing)?;
        if c != '\\' {
            return Ok(u32::from(c));
        }
        let digits = match self.next().ok_or(missing)? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            't' => return Ok(9),
            'r' => return Ok(13),
            'n' => return Ok(10),
            c @ ('\\' | '"' | '[' | ']') => return Ok(u32::from(c)),
            c => return Err(format!("'\\{c}' means nothing")),
        };
        let hex = self.text.get(self.at..self.at + digits).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = hex.and_then(|h| u32::from_str_radix(h, 16).ok()).filter(|&c| char::from_u32(c).is_some());
        self.at += if code.is_some() { digits } else { 0 };
        code.ok_or_else(|| format!("{digits} hexadecimal digits of a character were expected"))
    }

    /// The number of a class.
    fn class(&mut self, ranges: Vec<[u32; 2]>) -> Result<usize, String> {
        let class = others(&others(&ranges));
        let new = self.classes.len();
        if new >= MAX_CLASSES && !self.classes.contains_key(&class) {
            return Err(format!("there are more than {MAX_CLASSES} different classes of characters"));
        }
        Ok(*self.classes.entry(class).or_insert(new))
    }
}

/// All characters that are not in these ranges.
fn others(ranges: &[[u32; 2]]) -> Class {
    let mut sorted: Vec<[u32; 2]> = ranges.iter().copied().chain([SURROGATES]).collect();
    sorted.sort_unstable();
    let (mut out, mut next) = (Class::new(), 0);
    for [a, b] in sorted {
        if a > next {
            out.push([next, a - 1]);
        }
        next = next.max(b + 1);
    }
    if next <= LAST {
        out.push([next, LAST]);
    }
    out
}
