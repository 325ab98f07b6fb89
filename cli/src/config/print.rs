//! `--print-config`: all settings as a file that `--config` reads back.

use std::fmt::Write;

use super::environment::variable;
use super::layers::{Layers, Origin};
use super::secret::is_secret;
use super::settings::describe;

pub(super) fn print(layers: &Layers) -> String {
    let mut text = String::from(
        "# Settings of geminga. Each can also be set in the environment, by the name in brackets,\n\
         # or with --set name=value.\n",
    );
    let root = layers.values.iter().filter(|(key, _)| !key.contains('.'));
    let sections = layers.values.iter().filter(|(key, _)| key.contains('.'));
    let mut current = "";
    for (key, set) in root.chain(sections) {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        // Writing to a string can't fail.
        if section != current {
            current = section;
            let _infallible = write!(text, "\n[{section}]\n");
        }
        let _infallible = write!(text, "\n# {} [{}]", describe(key), variable(key));
        if set.origin != Origin::Default {
            let _infallible = write!(text, "\n# set by: {}", set.origin);
        }
        let _infallible = if is_secret(key) && set.origin != Origin::Default {
            // A line that isn't there is a setting that isn't set: the file reads back without it.
            write!(text, "\n# it is set, and not shown\n# {name} = \"…\"\n")
        } else {
            write!(text, "\n{name} = {}\n", set.value)
        };
    }
    text
}
