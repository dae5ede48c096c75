//! The source files of both crates as the checks read them: tokens, with or without the items for tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Folders of the two crates.
const FOLDERS: [&str; 2] = ["src", "core/src"];

/// A file of `src` or `core/src`.
pub struct SourceFile {
    /// From the repository's root, for example `src/live/topic.rs`.
    pub path: String,
    pub text: String,
    /// Whether the file is compiled for tests only.
    pub is_test: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An identifier, a keyword or a number.
    Word,
    /// `::` is one token, every other punctuation character is one.
    Punctuation,
    /// A string or a character, with its quotes.
    Literal,
    Comment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: TokenKind,
    pub text: &'a str,
    pub line: usize,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of both crates.
pub fn all_files() -> Vec<SourceFile> {
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.push(SourceFile { path, text, is_test: false });
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    let test_modules: BTreeSet<String> = files.iter().flat_map(SourceFile::test_modules).collect();
    for file in &mut files {
        // A module's own modules are in the folder with its name.
        file.is_test = file.path.match_indices('/').any(|(end, _)| test_modules.contains(&file.path[..end]))
            || test_modules.contains(file.path.trim_end_matches(".rs"));
    }
    files
}

/// The files that are part of the library and the program.
pub fn shipped_files() -> Vec<SourceFile> {
    all_files().into_iter().filter(|file| !file.is_test).collect()
}

impl SourceFile {
    /// The text with empty lines in place of the items under `#[cfg(test)]`.
    pub fn shipped_text(&self) -> String {
        let test_lines: BTreeSet<usize> = self.test_items().into_iter().flatten().collect();
        let lines = self.text.lines().enumerate();
        lines
            .map(|(index, line)| if test_lines.contains(&index) { "\n".into() } else { format!("{line}\n") })
            .collect()
    }

    /// The file's module as a path from the crate's root; empty for `lib.rs` and `main.rs`.
    pub fn module(&self) -> Vec<&str> {
        let path = FOLDERS.iter().find_map(|folder| self.path.strip_prefix(folder)).unwrap();
        match path {
            "/lib.rs" | "/main.rs" => Vec::new(),
            path => path.trim_start_matches('/').trim_end_matches(".rs").split('/').collect(),
        }
    }

    /// Paths of files, without `.rs`, of the modules that are declared under `#[cfg(test)]`.
    fn test_modules(&self) -> Vec<String> {
        let lines: Vec<_> = self.text.lines().collect();
        let mut modules = Vec::new();
        for item in self.test_items() {
            let mut path = None;
            for line in &lines[item] {
                let line = line.trim();
                if let Some(given) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                    path = Some(given);
                }
                let declared = line.strip_suffix(';').and_then(|line| line.split_once("mod "));
                if let Some((_, name)) = declared {
                    modules.push(self.module_file(name, path));
                }
            }
        }
        modules
    }

    fn module_file(&self, name: &str, path: Option<&str>) -> String {
        let (folder, file) = self.path.rsplit_once('/').unwrap();
        let joined = match path {
            Some(path) => format!("{folder}/{}", path.trim_end_matches(".rs")),
            None if matches!(file, "lib.rs" | "main.rs") => format!("{folder}/{name}"),
            None => format!("{}/{name}", self.path.trim_end_matches(".rs")),
        };
        let mut parts = Vec::new();
        for part in joined.split('/') {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        parts.join("/")
    }

    /// Lines, counted from 0, of each item under `#[cfg(test)]`. In code that rustfmt has formatted, an item ends
    /// at the first line with the attribute's indentation that ends with `}`, `;` or `,`.
    fn test_items(&self) -> Vec<std::ops::Range<usize>> {
        let lines: Vec<_> = self.text.lines().collect();
        let mut items: Vec<std::ops::Range<usize>> = Vec::new();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_inside = items.last().is_some_and(|item| item.contains(&start));
            if code != "#[cfg(test)]" || is_inside {
                continue;
            }
            let indentation = &line[..line.len() - code.len()];
            let length = lines[start..].iter().position(|line| {
                let is_level =
                    line.strip_prefix(indentation).is_some_and(|rest| !rest.starts_with([' ', '#', '/']));
                is_level && line.ends_with(['}', ';', ','])
            });
            let length = length.unwrap_or_else(|| panic!("{}: {}: the item does not end", self.path, start + 1));
            items.push(start..start + length + 1);
        }
        items
    }
}

/// The tokens of Rust code. Lines are counted from 1.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word_length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (kind, length) = if rest.starts_with("//") {
            (Some(TokenKind::Comment), rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (Some(TokenKind::Comment), rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if let Some(length) = literal_length(rest) {
            (Some(TokenKind::Literal), length)
        } else if word_length > 0 {
            (Some(TokenKind::Word), word_length)
        } else if rest.starts_with("::") {
            (Some(TokenKind::Punctuation), 2)
        } else {
            ((!first.is_whitespace()).then_some(TokenKind::Punctuation), first.len_utf8())
        };
        let (text, after) = rest.split_at(length);
        tokens.extend(kind.map(|kind| Token { kind, text, line }));
        line += text.matches('\n').count();
        rest = after;
    }
    tokens
}

/// The length of the string or character that the text begins with.
fn literal_length(text: &str) -> Option<usize> {
    let prefix = text.find(|c| !matches!(c, 'b' | 'c' | 'r'))?;
    let hashes = text[prefix..].find(|c| c != '#')?;
    let start = prefix + hashes + 1;
    if prefix > 0 && text[..prefix].ends_with('r') && text[prefix + hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(start + text[start..].find(&end)? + end.len());
    }
    let quote = text[prefix..].chars().next().filter(|c| matches!(c, '"' | '\''))?;
    // A lifetime begins like a character, and has no second quote.
    let is_lifetime = quote == '\'' && {
        let mut inside = text[start..].chars();
        inside.next() != Some('\\') && inside.next() != Some('\'')
    };
    if is_lifetime {
        return None;
    }
    let mut is_escaped = false;
    for (index, c) in text[start..].char_indices() {
        if !is_escaped && c == quote {
            return Some(start + index + 1);
        }
        is_escaped = !is_escaped && c == '\\';
    }
    None
}

/// The tokens that are not comments.
pub fn code_tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = tokens(text);
    tokens.retain(|token| token.kind != TokenKind::Comment);
    tokens
}

/// Each path of `use` trees and expressions, from its first name on: `use a::{b, c::d}` is `a::b` and `a::c::d`.
/// Names of the standard library and of dependencies stand first as they are written; `crate::`, `self::` and
/// `super::` are replaced by the module's own path, which begins with `crate`.
pub fn paths(file: &SourceFile, text: &str) -> Vec<Vec<String>> {
    let tokens = code_tokens(text);
    let mut paths = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let is_start = is_name(&tokens[index]) && is_path_separator(&tokens, index + 1);
        let continues = index >= 2
            && is_path_separator(&tokens, index - 1)
            && (is_name(&tokens[index - 2]) || tokens[index - 2].text == ">");
        if is_start && !continues {
            let mut found = Vec::new();
            index = read_tree(&tokens, index, &[], &mut found);
            paths.extend(found.into_iter().map(|path| absolute(file, path)));
        } else {
            index += 1;
        }
    }
    paths
}

/// Whether a token is a part of a path, and no keyword that a path with a leading `::` may follow.
fn is_name(token: &Token<'_>) -> bool {
    token.kind == TokenKind::Word && !matches!(token.text, "as" | "dyn" | "impl" | "in" | "mut" | "return" | "use")
}

fn is_path_separator(tokens: &[Token<'_>], index: usize) -> bool {
    tokens.get(index).is_some_and(|token| token.text == "::")
}

/// Reads a path, or several in braces, that continue `start`. Returns the index of the token behind it.
fn read_tree(tokens: &[Token<'_>], mut index: usize, start: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = start.to_vec();
    loop {
        match tokens.get(index) {
            Some(token) if token.kind == TokenKind::Word || token.text == "*" => path.push(token.text.to_owned()),
            Some(token) if token.text == "{" => {
                index += 1;
                while tokens.get(index).is_some_and(|token| token.text != "}") {
                    index = read_tree(tokens, index, &path, paths);
                    // `a as b`, and the comma.
                    while tokens.get(index).is_some_and(|token| !matches!(token.text, "}" | ",")) {
                        index += 1;
                    }
                    index += usize::from(tokens.get(index).is_some_and(|token| token.text == ","));
                }
                return index + 1;
            }
            _ => break,
        }
        index += 1;
        if !is_path_separator(tokens, index) {
            break;
        }
        index += 1;
    }
    paths.push(path);
    index
}

fn absolute(file: &SourceFile, path: Vec<String>) -> Vec<String> {
    let mut module: Vec<String> = vec!["crate".into()];
    module.extend(file.module().into_iter().map(str::to_owned));
    let mut names = path.into_iter().peekable();
    match names.peek().map(String::as_str) {
        Some("crate" | "roomcast_core") => {
            names.next();
            module.truncate(1);
        }
        Some("self" | "super") => {
            while names.next_if(|name| name == "self").is_some() {}
            while names.next_if(|name| name == "super").is_some() {
                module.pop();
            }
        }
        _ => return names.collect(),
    }
    module.extend(names);
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.into(), text: text.into(), is_test: false }
    }

    fn paths_of(path: &str, text: &str) -> Vec<String> {
        paths(&file(path, text), text).into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn items_for_tests_are_left_out_wherever_they_stand() {
        let text = "\
struct A {
    #[cfg(test)]
    seen: usize,
    kept: usize,
}

impl A {
    #[cfg(test)]
    #[allow(dead_code)]
    fn only_for_tests(
        a: usize,
    ) -> usize {
        if a > 0 {
            1
        } else {
            2
        }
    }

    fn kept() {}
}

#[cfg(test)]
use std::{
    fs,
};

#[cfg(test)]
mod tests {
    fn only_for_tests() {}
}

struct Kept;
";
        let shipped = file("src/a.rs", text).shipped_text();
        let lines: Vec<_> = shipped.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(
            lines,
            ["struct A {", "    kept: usize,", "}", "impl A {", "    fn kept() {}", "}", "struct Kept;"]
        );
        assert_eq!(shipped.lines().count(), text.lines().count());
    }

    #[test]
    fn modules_for_tests_are_files_for_tests() {
        let text = "mod b;\n#[cfg(test)]\n#[path = \"../core/src/fuzz.rs\"]\nmod fuzz;\n#[cfg(test)]\nmod tests;\n";
        assert_eq!(file("src/lib.rs", text).test_modules(), ["core/src/fuzz", "src/tests"]);
        assert_eq!(file("src/a/b.rs", "#[cfg(test)]\nmod tests;\n").test_modules(), ["src/a/b/tests"]);
    }

    #[test]
    fn strings_comments_and_lifetimes_are_told_apart() {
        let text = r##"fn a<'a>(x: &'a str) { b('"', '\'', "\" // no", r#"" "#, b"c"); } // d "e""##;
        let of =
            |kind| tokens(text).into_iter().filter(|token| token.kind == kind).map(|token| token.text).collect();
        let (literals, comments): (Vec<_>, Vec<_>) = (of(TokenKind::Literal), of(TokenKind::Comment));
        assert_eq!(literals, ["'\"'", r"'\''", r#""\" // no""#, r##"r#"" "#"##, "b\"c\""]);
        assert_eq!(comments, ["// d \"e\""]);
    }

    #[test]
    fn paths_are_read_from_the_crates_root() {
        let text = "use crate::{live::{Live, LogClient as L}, names};\nuse std::io;\nfn a() -> super::B { c::d() }";
        let expected =
            ["crate::live::Live", "crate::live::LogClient", "crate::names", "std::io", "crate::a::B", "c::d"];
        assert_eq!(paths_of("src/a/b.rs", text), expected);
        assert_eq!(paths_of("src/a.rs", "use super::live;\nuse ::redis::Value;"), ["crate::live", "redis::Value"]);
        assert_eq!(paths_of("src/a.rs", "pub(crate) fn a() { Vec::<u8>::new() }"), ["Vec"]);
    }
}
