//! Each rule is shown violations in a temporary tree: it finds them, at their place, and nothing
//! in the clean files beside them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::check;
use crate::tree::Tree;

const HEADER: &str = "//! A module.\n";

/// What is found in a tree of these files, as `rule path:line`, sorted.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let root = TempDir::new().expect("a temporary directory");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a folder");
        fs::write(path, text).expect("written");
    }
    let line = |(rule, violation): &(&str, crate::tree::Violation)| {
        format!("{rule} {}:{}", violation.path, violation.line)
    };
    let mut lines: Vec<String> = check(&Tree::load(root.path())).iter().map(line).collect();
    lines.sort();
    lines
}

fn after_header(text: &str) -> String {
    format!("{HEADER}{text}")
}

const MANIFEST: &str = "[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n\n[dependencies]\n";

fn manifest(dependencies: &str) -> String {
    format!("{MANIFEST}{dependencies}")
}

#[test]
fn a_clean_tree_passes() {
    let code = after_header("use geminga_proto::id::LedgerId;\nfn f() { let _ = \"todo!()\"; }\n");
    assert_eq!(
        found(&[
            ("Cargo.toml", "[workspace]\n"),
            ("meta/Cargo.toml", &manifest("geminga-proto.workspace = true\n")),
            ("meta/src/lib.rs", &code),
            ("meta/src/keys.rs", &after_header("const A: &str = \"tenants/\";\n")),
            ("cli/src/main.rs", &after_header("fn f() { std::env::args(); }\n")),
            ("target/debug/x.rs", "todo!()"),
            (".hidden/x.rs", "todo!()"),
        ]),
        Vec::<String>::new()
    );
}

#[test]
fn a_dependency_against_the_direction_is_found_in_manifest_and_code() {
    let backwards = manifest("geminga-proto.workspace = true\ngeminga-ledger.workspace = true\n");
    let developing = manifest("[dev-dependencies]\ngeminga-bookie = { path = \"../bookie\" }\n");
    let code = after_header("use geminga_broker::core;\n// geminga_broker is fine here\n");
    assert_eq!(
        found(&[
            ("meta/Cargo.toml", &backwards),
            ("broker/Cargo.toml", &developing),
            ("bookie/src/lib.rs", &code),
            ("bookie/src/own.rs", &after_header("use geminga_bookie::x;\n")),
            ("client/Cargo.toml", "[package]\n"),
            ("stray/src/lib.rs", HEADER),
        ]),
        [
            "direction bookie/src/lib.rs:2",
            "direction broker/Cargo.toml:9",
            "direction client/Cargo.toml:1",
            "direction meta/Cargo.toml:9",
            "direction stray/src/lib.rs:1",
        ]
    );
}

#[test]
fn a_core_that_names_a_wire_and_a_front_end_that_names_another_are_found() {
    let wires = "use axum::Router;\nuse geminga_proto::v1::Receipt;\n\
                 use geminga_proto::{id::LedgerId, pulsar::proto, env};\n\
                 fn f() { geminga_proto::v1::x(); let v1 = 1; }\nuse crate::frontend::admin;\n";
    let grpc =
        "use crate::frontend::admin::serve;\nuse crate::core::admin::X;\nuse super::admin;\n";
    let below = "use super::admin;\nuse crate::frontend::admin::serve;\n";
    assert_eq!(
        found(&[
            ("broker/src/core/topic.rs", &after_header(wires)),
            ("broker/src/core.rs", &after_header("use tonic::Status;\n")),
            ("broker/src/core/fine.rs", &after_header("use geminga_proto::entry; // tonic\n")),
            ("broker/src/frontend/admin.rs", &after_header("use axum::Router;\n")),
            ("broker/src/frontend/grpc.rs", &after_header(grpc)),
            ("broker/src/frontend/grpc/below.rs", &after_header(below)),
        ]),
        [
            "core broker/src/core.rs:2",
            "core broker/src/core/topic.rs:2",
            "core broker/src/core/topic.rs:3",
            "core broker/src/core/topic.rs:4",
            "core broker/src/core/topic.rs:5",
            "core broker/src/core/topic.rs:6",
            "core broker/src/frontend/grpc.rs:2",
            "core broker/src/frontend/grpc.rs:4",
            "core broker/src/frontend/grpc/below.rs:3",
        ]
    );
}

#[test]
fn reading_the_environment_outside_the_command_line_is_found() {
    let code = "fn f() { std::env::var(\"X\"); }\n#[cfg(test)]\nmod tests {\n    fn g() { \
                std::env::var(\"X\"); }\n}\n";
    assert_eq!(
        found(&[
            ("bookie/src/config.rs", &after_header(code)),
            ("bookie/src/config/tests.rs", &after_header("fn f() { std::env::args(); }\n")),
            ("bookie/build.rs", &after_header("fn f() { std::env::args(); }\n")),
        ]),
        ["environment bookie/src/config.rs:2"]
    );
}

#[test]
fn files_lines_and_functions_that_are_too_long_are_found() {
    let lines = |count: usize| "//\n".repeat(count - 1);
    let wide = format!("// {}\n", "x".repeat(98));
    let text = format!("const A: &str = \"{}\";\nconst B: &str = \"x\"; {wide}", "x".repeat(90));
    let address = format!("// https://example.org/{}\n", "x".repeat(98));
    let function = |lines: usize| format!("fn long() {{\n{}}}\n", "    f();\n".repeat(lines - 2));
    assert_eq!(
        found(&[
            ("meta/src/a.rs", &after_header(&lines(1_001))),
            ("meta/src/b.rs", &after_header(&lines(601))),
            ("meta/src/c.rs", &after_header(&format!("//! Length: a table.\n{}", lines(999)))),
            ("meta/src/d.rs", &after_header(&lines(600))),
            ("meta/src/e.rs", &after_header(&wide)),
            ("meta/src/f.rs", &after_header(&text)),
            ("meta/src/g.rs", &after_header(&address)),
            ("meta/src/h.rs", &after_header(&function(101))),
            ("meta/src/i.rs", &after_header(&function(100))),
            ("proto/proto/x.proto", &wide),
        ]),
        [
            "length meta/src/a.rs:1001",
            "length meta/src/b.rs:601",
            "length meta/src/e.rs:2",
            "length meta/src/f.rs:3",
            "length meta/src/h.rs:2",
            "length proto/proto/x.proto:1",
        ]
    );
}

#[test]
fn a_missing_header_and_a_mod_rs_are_found() {
    assert_eq!(
        found(&[
            ("meta/src/a.rs", "use std::fs;\n"),
            ("meta/src/b.rs", "// not one\n"),
            ("meta/src/c/mod.rs", HEADER),
            ("meta/src/d.rs", ""),
        ]),
        [
            "header meta/src/a.rs:1",
            "header meta/src/b.rs:1",
            "header meta/src/c/mod.rs:1",
            "header meta/src/d.rs:1",
        ]
    );
}

#[test]
fn unbounded_channels_and_what_is_left_undone_are_found() {
    let code = "fn a() { tokio::sync::mpsc::unbounded_channel(); }\n\
                fn b() { let (s, r) = mpsc::channel(); }\n\
                fn c() { unbounded::<u8>(); unbounded(); }\n\
                fn d() { todo!() }\n\
                fn e() { unimplemented!(\"later\") }\n\
                #[ignore = \"slow\"]\n\
                fn g() { mpsc::channel(3); let _ = \"todo!()\"; } // todo!()\n";
    assert_eq!(
        found(&[("ledger/src/a.rs", &after_header(code))]),
        [
            "forbidden ledger/src/a.rs:2",
            "forbidden ledger/src/a.rs:3",
            "forbidden ledger/src/a.rs:4",
            "forbidden ledger/src/a.rs:4",
            "forbidden ledger/src/a.rs:5",
            "forbidden ledger/src/a.rs:6",
            "forbidden ledger/src/a.rs:7",
        ]
    );
}

#[test]
fn a_key_outside_its_file_is_found_and_a_url_is_not_one() {
    let key = after_header("fn f() { g(\"managed-ledgers/00\"); h(\"x topics/\"); }\n");
    let tested = "fn f() {}\n#[cfg(test)]\nmod tests {\n    const K: &str = \"tenants/a\";\n}\n";
    assert_eq!(
        found(&[
            ("broker/src/core/managed_ledger.rs", &key),
            ("ledger/src/lib.rs", &after_header("const A: &str = r\"/geminga/c1/\";\n")),
            ("broker/src/frontend/admin.rs", &key),
            ("meta/src/keys.rs", &key),
            ("meta/src/dump.rs", &after_header(tested)),
            ("meta/src/keys/tests.rs", &key),
        ]),
        ["keys broker/src/core/managed_ledger.rs:2", "keys ledger/src/lib.rs:2"]
    );
}
