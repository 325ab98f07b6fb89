//! The house rules that a compiler doesn't check, held by a test over the source tree.
//!
//! | rule | what is refused |
//! | --- | --- |
//! | direction | a crate that depends on or names one it must not know; a crate without the workspace's lints |
//! | core | `broker::core` that names a front-end, tonic, axum, hyper, prost or wire messages; a front-end that names another |
//! | environment | reading the environment or the arguments outside `cli` |
//! | length | a file over 1,000 lines, or over 600 without a `//! Length: …` line that says why; a line over 100 columns, save for a long string or an address; a function over 100 lines (over 70 is reported) |
//! | header | a module without a `//!` header; a `mod.rs` |
//! | forbidden | unbounded channels, `todo!`, `unimplemented!`, `#[ignore]` |
//! | keys | a metadata key outside `meta/src/keys.rs` |
//!
//! Each rule is shown a planted violation too, so that none of them passes because it looks
//! nowhere.

#[path = "tidy/plain.rs"]
mod plain;
#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/structure.rs"]
mod structure;
#[path = "tidy/tree.rs"]
mod tree;

use std::path::Path;

use tree::{Tree, Violation};

/// A rule: everything in the tree that breaks it.
type Rule = fn(&Tree) -> Vec<Violation>;

const RULES: [(&str, Rule); 7] = [
    ("direction", structure::direction),
    ("core", structure::core),
    ("environment", structure::environment),
    ("length", plain::length),
    ("header", plain::header),
    ("forbidden", plain::forbidden),
    ("keys", structure::keys),
];

fn check(tree: &Tree) -> Vec<(&'static str, Violation)> {
    let broken = |(name, rule): &(&'static str, Rule)| {
        rule(tree).into_iter().map(|violation| (*name, violation)).collect::<Vec<_>>()
    };
    RULES.iter().flat_map(broken).collect()
}

#[test]
fn the_source_tree_keeps_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tree = Tree::load(&root);
    let crates =
        ["proto", "meta", "ledger", "bookie", "broker", "client", "cli", "simulation", "tests"];
    for name in crates {
        let mut of_it = tree.files.iter().filter(|file| file.crate_name() == name);
        let found = of_it.any(|file| file.path.contains("/src/"));
        assert!(found, "no source of {name} was found below {}", root.display());
    }
    for note in plain::long_functions(&tree) {
        eprintln!("note: {note}");
    }
    let broken = check(&tree);
    let lines: Vec<String> =
        broken.iter().map(|(rule, violation)| format!("{violation} [{rule}]")).collect();
    assert!(broken.is_empty(), "{} rules are broken:\n{}", broken.len(), lines.join("\n"));
}
