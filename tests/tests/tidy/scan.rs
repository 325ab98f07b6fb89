//! A small scanner of Rust: which parts are code, which are literals, which are comments; tokens,
//! functions and inline test modules. It knows as much as the rules need and no more.

use std::ops::RangeInclusive;

/// A string literal's contents.
pub struct Literal {
    /// Line of its start, from 1.
    pub line: usize,
    pub text: String,
}

/// An identifier, or one character of punctuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub line: usize,
    pub text: String,
}

/// A function with a body.
pub struct Function {
    pub name: String,
    /// From the line with `fn` to the closing brace.
    pub lines: RangeInclusive<usize>,
}

/// The parts of one source.
#[derive(Default)]
pub struct Scanned {
    pub literals: Vec<Literal>,
    pub tokens: Vec<Token>,
    pub functions: Vec<Function>,
    /// `#[cfg(test)] mod name { … }`
    pub test_modules: Vec<RangeInclusive<usize>>,
}

impl Scanned {
    pub fn new(text: &str) -> Self {
        let mut scanner = Scanner { rest: text, line: 1, out: Self::default() };
        while let Some(next) = scanner.rest.chars().next() {
            scanner.step(next);
        }
        let mut out = scanner.out;
        out.functions = functions(&out.tokens);
        out.test_modules = test_modules(&out.tokens);
        out
    }

    /// Whether these tokens follow each other somewhere; their lines.
    pub fn find<'a>(&'a self, sequence: &'a [&'a str]) -> impl Iterator<Item = usize> + 'a {
        let same = move |window: &&[Token]| {
            window.iter().zip(sequence).all(|(token, wanted)| token.text == *wanted)
        };
        self.tokens.windows(sequence.len()).filter(same).map(|window| window[0].line)
    }
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    out: Scanned,
}

impl Scanner<'_> {
    fn step(&mut self, next: char) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.advance(end);
        } else if self.rest.starts_with("/*") {
            self.block_comment();
        } else if let Some((prefix, hashes)) = raw_string(self.rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            self.literal(prefix, |body| body.find(&close).map(|end| (end, end + close.len())));
        } else if let Some(prefix) = string(self.rest) {
            self.literal(prefix, closing_quote);
        } else if next == '\'' {
            self.quote();
        } else if next.is_alphanumeric() || next == '_' {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let end = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
            self.token(end);
        } else if next.is_whitespace() {
            self.advance(next.len_utf8());
        } else {
            self.token(next.len_utf8());
        }
    }

    fn advance(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
    }

    fn token(&mut self, bytes: usize) {
        let text = self.rest[..bytes].to_owned();
        self.out.tokens.push(Token { line: self.line, text });
        self.advance(bytes);
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            if self.rest.starts_with("/*") {
                depth += 1;
                self.advance(2);
            } else if self.rest.starts_with("*/") {
                depth -= 1;
                self.advance(2);
            } else if let Some(next) = self.rest.chars().next() {
                self.advance(next.len_utf8());
            } else {
                return;
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// `end` finds where the contents and where the literal end.
    fn literal(&mut self, prefix: usize, end: impl Fn(&str) -> Option<(usize, usize)>) {
        let line = self.line;
        self.advance(prefix);
        let whole = self.rest.len();
        let (content, close) = end(self.rest).unwrap_or((whole, whole));
        let text = self.rest[..content].to_owned();
        self.out.literals.push(Literal { line, text });
        // Stands for the literal, so that what is around it is not taken for neighbours.
        self.out.tokens.push(Token { line, text: "\"".to_owned() });
        self.advance(close);
    }

    /// A character, or a lifetime.
    fn quote(&mut self) {
        let body = &self.rest[1..];
        let mut characters = body.chars();
        let end = match (characters.next(), characters.next()) {
            (Some('\\'), Some(escaped)) => {
                let start = 1 + escaped.len_utf8();
                body[start..].find('\'').map(|end| 1 + start + end + 1)
            }
            (Some(character), Some('\'')) => Some(1 + character.len_utf8() + 1),
            _ => None,
        };
        self.advance(end.unwrap_or(1));
    }
}

/// Length of `r#"` and the like, and the number of hashes.
fn raw_string(rest: &str) -> Option<(usize, usize)> {
    let letters = ["br", "cr", "r"].into_iter().find(|letters| rest.starts_with(letters))?;
    let after = &rest[letters.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some((letters.len() + hashes + 1, hashes))
}

/// Length of `"`, `b"` or `c"`.
fn string(rest: &str) -> Option<usize> {
    ["\"", "b\"", "c\""].into_iter().find(|open| rest.starts_with(open)).map(str::len)
}

fn closing_quote(body: &str) -> Option<(usize, usize)> {
    let mut escaped = false;
    for (at, character) in body.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((at, at + 1)),
            _ => {}
        }
    }
    None
}

/// Index of the brace that closes the one at `open`.
fn closing_brace(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return Some(index),
            "}" => depth -= 1,
            _ => {}
        }
    }
    None
}

fn functions(tokens: &[Token]) -> Vec<Function> {
    let mut found = Vec::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        let named = pair[1].text.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if pair[0].text != "fn" || !named {
            continue;
        }
        // The body opens at the first brace outside the parentheses; `;` ends a declaration.
        let mut depth = 0_i32;
        let body = tokens.iter().enumerate().skip(index).find(|(_, token)| {
            match token.text.as_str() {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                _ => {}
            }
            depth == 0 && ["{", ";"].contains(&token.text.as_str())
        });
        if let Some((open, token)) = body
            && token.text == "{"
            && let Some(close) = closing_brace(tokens, open)
        {
            let lines = pair[0].line..=tokens[close].line;
            found.push(Function { name: pair[1].text.clone(), lines });
        }
    }
    found
}

fn test_modules(tokens: &[Token]) -> Vec<RangeInclusive<usize>> {
    let opening = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut found = Vec::new();
    for (index, window) in tokens.windows(opening.len() + 2).enumerate() {
        let opens = window.iter().zip(opening).all(|(token, wanted)| token.text == wanted);
        let brace = index + opening.len() + 1;
        if opens
            && tokens[brace].text == "{"
            && let Some(close) = closing_brace(tokens, brace)
        {
            found.push(window[0].line..=tokens[close].line);
        }
    }
    found
}

#[test]
fn literals_comments_and_code_are_told_apart() {
    let source = r##"
//! todo!() in a comment /* not nested
fn one<'a>(text: &'a str) -> char { // fn hidden() {}
    let _ = "a \" fn no() {} // \\";
    let _raw = r#"say "hi" {"#; let _b = b"bytes\n{";
    /* outer /* inner { */ still { */ '{'
}
fn two() { let q = '\''; let u = '\u{7b}'; }
trait T { fn three(&self); fn four(&self, x: [u8; 2]) {} }
#[cfg(test)]
mod tests { fn five() {} }
"##;
    let scanned = Scanned::new(source);
    let texts: Vec<&str> = scanned.literals.iter().map(|literal| literal.text.as_str()).collect();
    assert_eq!(texts, [r#"a \" fn no() {} // \\"#, "say \"hi\" {", r"bytes\n{"]);
    let functions: Vec<(&str, usize, usize)> = scanned
        .functions
        .iter()
        .map(|function| (function.name.as_str(), *function.lines.start(), *function.lines.end()))
        .collect();
    let expected = [("one", 3, 7), ("two", 8, 8), ("four", 9, 9), ("five", 11, 11)];
    assert_eq!(functions, expected);
    assert_eq!(scanned.test_modules, [10..=11]);
    assert_eq!(scanned.find(&["todo"]).count(), 0);
    assert_eq!(scanned.find(&["fn", "three"]).collect::<Vec<_>>(), [9]);
}
