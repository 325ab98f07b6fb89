//! Rules about what may know what: crates, the broker's core, front-ends, the environment, keys.

use std::collections::BTreeSet;

use crate::scan::Token;
use crate::tree::{SourceFile, Tree, Violation};

/// Which other crates each crate may know. `proto ← meta ← ledger ← broker ← cli`,
/// `proto ← meta ← bookie ← cli`, `proto ← client ← cli`; `tests` is a client of real processes,
/// etcd among them, against which the metadata's contract is held; `simulation` puts brokers and
/// bookies into one thread, and nothing knows it.
const MAY_KNOW: [(&str, &[&str]); 9] = [
    ("proto", &[]),
    ("meta", &["proto"]),
    ("ledger", &["proto", "meta"]),
    ("bookie", &["proto", "meta"]),
    ("broker", &["proto", "meta", "ledger"]),
    ("client", &["proto"]),
    ("cli", &["proto", "meta", "ledger", "bookie", "broker", "client"]),
    ("simulation", &["proto", "meta", "ledger", "bookie", "broker"]),
    ("tests", &["proto", "meta", "client"]),
];

/// Nothing of a wire is named in the broker's core.
const NOT_IN_CORE: [&str; 9] =
    ["tonic", "tonic_prost", "axum", "hyper", "hyper_util", "http", "prost", "tower", "frontend"];

/// Prefixes of the metadata's keys (`meta/src/keys.rs`).
const KEY_PREFIXES: [&str; 17] = [
    "tenants/",
    "namespaces/",
    "topics/",
    "managed-ledgers/",
    "ledgers/",
    "bundles/",
    "ownership/",
    "brokers/",
    "bookies/",
    "cookies/",
    "counters/",
    "repairs/",
    "repair-locks/",
    "drains/",
    "election/",
    "schemas/",
    "/geminga/",
];

/// Where records are read and written; elsewhere such texts are paths of URLs.
const KEYS_ARE_USED_IN: [&str; 4] = ["meta/src/", "ledger/src/", "bookie/src/", "broker/src/core"];

fn may_know(name: &str) -> Option<&'static [&'static str]> {
    MAY_KNOW.iter().find(|(known, _)| *known == name).map(|(_, others)| *others)
}

pub fn direction(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for file in &tree.files {
        let name = file.crate_name();
        let Some(allowed) = may_know(name) else {
            // The workspace's own manifest; any other folder with sources is a crate to decide on.
            if file.path != "Cargo.toml" && (file.is_rust() || file.path.ends_with("Cargo.toml")) {
                let what = format!("crate {name} is not in the list of who may know whom");
                broken.push(Violation::new(file, 1, what));
            }
            continue;
        };
        let refuse = |line, other: &str| {
            let what = format!("{name} must not know {other}; it may know {allowed:?}");
            Violation::new(file, line, what)
        };
        let permitted = |other: &str| other == name || allowed.contains(&other);
        if file.path.ends_with("Cargo.toml") {
            for (index, line) in file.text.lines().enumerate() {
                let dependency = line.trim_start().strip_prefix("geminga-").map(|rest| {
                    rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
                });
                if let Some(other) = dependency.filter(|other| !permitted(other)) {
                    broken.push(refuse(index + 1, other));
                }
            }
            if !file.text.contains("[lints]\nworkspace = true") {
                broken.push(Violation::new(file, 1, "the workspace's lints are not in force"));
            }
        }
        for token in &file.scanned.tokens {
            if let Some(other) = token.text.strip_prefix("geminga_")
                && may_know(other).is_some()
                && !permitted(other)
            {
                broken.push(refuse(token.line, other));
            }
        }
    }
    broken
}

pub fn core(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    let front_ends = front_ends(tree);
    for file in tree.rust() {
        if file.path.starts_with("broker/src/core/") || file.path == "broker/src/core.rs" {
            for token in &file.scanned.tokens {
                if NOT_IN_CORE.contains(&token.text.as_str()) {
                    let what = format!("the broker's core names {}", token.text);
                    broken.push(Violation::new(file, token.line, what));
                }
            }
            for (line, module) in proto_modules(&file.scanned.tokens) {
                if ["v1", "pulsar", "incoming"].contains(&module.as_str()) {
                    let what =
                        format!("the broker's core names what is of a wire: proto::{module}");
                    broken.push(Violation::new(file, line, what));
                }
            }
        }
        if let Some(own) = front_end_of(&file.path) {
            for other in front_ends.iter().filter(|other| *other != own) {
                // Beside it, `super` is the folder of all front-ends.
                let beside = file.path == format!("broker/src/frontend/{own}.rs");
                let through: &[&str] = if beside { &["frontend", "super"] } else { &["frontend"] };
                for parent in through {
                    for line in file.scanned.find(&[parent, ":", ":", other]) {
                        let what = format!("front-end {own} names front-end {other}");
                        broken.push(Violation::new(file, line, what));
                    }
                }
            }
        }
    }
    broken
}

/// `broker/src/frontend/{name}.rs` or anything below `broker/src/frontend/{name}/`.
fn front_end_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("broker/src/frontend/")?;
    Some(rest.split_once('/').map_or_else(|| rest.trim_end_matches(".rs"), |(name, _)| name))
}

fn front_ends(tree: &Tree) -> BTreeSet<String> {
    tree.rust().filter_map(|file| front_end_of(&file.path)).map(str::to_owned).collect()
}

/// Modules of the proto crate that are named, alone or in a group.
fn proto_modules(tokens: &[Token]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let colons = |at: usize| tokens.get(at).is_some_and(|token| token.text == ":");
        if token.text != "geminga_proto" || !colons(index + 1) || !colons(index + 2) {
            continue;
        }
        let Some(next) = tokens.get(index + 3) else { continue };
        if next.text != "{" {
            found.push((next.line, next.text.clone()));
            continue;
        }
        // The first name after `{` and after each comma on the same level.
        let (mut depth, mut first) = (0, true);
        for token in &tokens[index + 3..] {
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," if depth == 1 => first = true,
                name if depth == 1 && first => {
                    found.push((token.line, name.to_owned()));
                    first = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

pub fn environment(tree: &Tree) -> Vec<Violation> {
    const READS: [&str; 5] = ["var", "var_os", "vars", "args", "args_os"];
    let mut broken = Vec::new();
    let elsewhere = |file: &&SourceFile| {
        !["cli", "tests"].contains(&file.crate_name()) && !file.path.ends_with("/build.rs")
    };
    for file in tree.rust().filter(elsewhere) {
        for read in READS {
            let lines = file.scanned.find(&["env", ":", ":", read]).collect::<Vec<_>>();
            for line in lines.into_iter().filter(|line| !file.is_test_line(*line)) {
                let what = format!("`env::{read}`: only the command line reads the environment");
                broken.push(Violation::new(file, line, what));
            }
        }
    }
    broken
}

pub fn keys(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    let concerned = |file: &&SourceFile| {
        KEYS_ARE_USED_IN.iter().any(|place| file.path.starts_with(place))
            && file.path != "meta/src/keys.rs"
    };
    for file in tree.rust().filter(concerned) {
        for literal in &file.scanned.literals {
            let prefix = KEY_PREFIXES.iter().find(|prefix| literal.text.starts_with(**prefix));
            if let Some(prefix) = prefix.filter(|_| !file.is_test_line(literal.line)) {
                let what = format!("the key {prefix}… is written outside meta/src/keys.rs");
                broken.push(Violation::new(file, literal.line, what));
            }
        }
    }
    broken
}
