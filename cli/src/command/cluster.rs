//! `geminga cluster init`: makes a new cluster in etcd. It is the only command of a cluster that
//! writes its identity; brokers and bookies only read it, so that a wrong address never makes a
//! second, empty cluster.

use std::time::Duration;

use geminga_meta::cluster::{self, InitError};
use geminga_meta::record::ClusterRecord;
use geminga_proto::env::Env;
use serde_json::json;

use crate::args::OutputFormat;
use crate::args::cluster::{ClusterArgs, ClusterCommand, InitArgs};
use crate::compose::metadata::connect;
use crate::config::{Settings, components};
use crate::exit::Outcome;
use crate::output;

/// How long a tool waits for etcd; somebody is looking at it.
const WAIT: Duration = Duration::from_secs(10);

/// Does what the arguments say.
///
/// # Errors
/// What is in the way.
pub async fn run(args: &ClusterArgs, settings: &Settings) -> Outcome {
    let ClusterCommand::Init(args) = &args.command;
    init(args, settings).await
}

async fn init(args: &InitArgs, settings: &Settings) -> Outcome {
    let env = Env::system();
    let config = components::metadata(settings)?;
    let wait = settings.metadata.wait.0.map_or(WAIT, |wait| wait.0);
    let store = connect(config, Some(wait), &env).await?;
    let bundles = settings.broker.bundles_per_namespace;
    let (cluster, is_new) = match cluster::init(&store, &env, bundles).await {
        Ok(cluster) => (cluster, true),
        Err(InitError::AlreadyInitialised(_)) if args.if_absent => {
            (cluster::read(&store).await?, false)
        }
        Err(error) => return Err(error.into()),
    };
    show(args.output, &settings.cluster_name, &cluster, is_new)?;
    Ok(())
}

fn show(
    format: OutputFormat,
    name: &str,
    cluster: &ClusterRecord,
    is_new: bool,
) -> std::io::Result<()> {
    let id = &cluster.cluster_id;
    match format {
        OutputFormat::Json => output::json(&json!({
            "cluster": name,
            "cluster_id": id.as_str(),
            "format_version": cluster.format_version,
            "created_ms": cluster.created_ms,
            "created": is_new,
        })),
        OutputFormat::Text if is_new => output::line(format!(
            "cluster {name} is made; its id is {id}. Start its bookies and brokers now"
        )),
        OutputFormat::Text => output::line(format!("cluster {name} is there; its id is {id}")),
    }
}
