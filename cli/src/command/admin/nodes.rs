//! `geminga admin brokers|bookies|bundles|cluster`: the nodes of a cluster, who has what, and how
//! the whole is.

use geminga_proto::topic_name::NamespaceName;

use super::repair::Drain;
use super::{Admin, namespace_path, show};
use crate::args::admin::{BookiesCommand, BrokersCommand, BundlesCommand, ClusterCommand};
use crate::exit::{Failed, Outcome};
use crate::http::segment;
use crate::output;

mod tables;

impl Admin<'_> {
    pub(super) async fn brokers(&self, command: &BrokersCommand) -> Outcome {
        match command {
            BrokersCommand::List => {
                let brokers = self.api.get("/admin/v2/geminga/brokers").await?;
                self.show(&brokers, tables::brokers)
            }
            BrokersCommand::Health => {
                let health = self.api.get("/admin/v2/brokers/health").await?;
                self.show(&health, |health| output::line(health.as_str().unwrap_or_default()))
            }
            BrokersCommand::Durability => {
                let durability = self.api.get("/admin/v2/geminga/durability").await?;
                self.show(&durability, show::durability)
            }
            BrokersCommand::Queues => {
                let queues = self.api.get("/admin/v2/geminga/queues").await?;
                self.show(&queues["queues"], show::queues)
            }
        }
    }

    pub(super) async fn bookies(&self, command: &BookiesCommand) -> Outcome {
        match command {
            BookiesCommand::List => {
                let bookies = self.api.get("/admin/v2/geminga/bookies").await?;
                self.show(&bookies, tables::bookies)
            }
            BookiesCommand::Decommission(args) => self.drain(Drain::Decommission, args).await,
            BookiesCommand::Recover(args) => self.drain(Drain::Recover, args).await,
            BookiesCommand::Scrub(args) => self.scrub(args).await,
        }
    }

    pub(super) async fn bundles(&self, command: &BundlesCommand) -> Outcome {
        match command {
            BundlesCommand::List { namespace } => {
                let namespace = match namespace {
                    Some(name) => name.parse()?,
                    None => NamespaceName::new(&self.settings.tenant, &self.settings.namespace)?,
                };
                let namespace = namespace_path(&namespace);
                let path = format!("/admin/v2/geminga/namespaces/{namespace}/bundles");
                let bundles = self.api.get(&path).await?;
                self.show(&bundles, tables::bundles)
            }
            BundlesCommand::Unload { namespace, bundle, all: _ } => {
                let name: NamespaceName = namespace.parse()?;
                let path = format!("/admin/v2/namespaces/{}", namespace_path(&name));
                let (path, done) = match bundle {
                    Some(bundle) => {
                        let path = format!("{path}/{}/unload", segment(bundle));
                        (path, format!("unloaded bundle {bundle} of {name}"))
                    }
                    None => (format!("{path}/unload"), format!("unloaded all bundles of {name}")),
                };
                self.api.put(&path, None).await?;
                self.done(&done)
            }
        }
    }

    pub(super) async fn cluster(&self, command: &ClusterCommand) -> Outcome {
        let ClusterCommand::Status = command;
        let status = self.api.get("/admin/v2/geminga/cluster").await?;
        self.show(&status, tables::cluster)?;
        match status["status"].as_str() {
            Some("healthy") => Ok(()),
            Some("degraded") => {
                let count = status["problems"].as_array().map_or(0, Vec::len);
                let what = if count == 1 { "problem" } else { "problems" };
                Err(Failed::degraded(format!("the cluster is degraded: {count} {what}")))
            }
            other => Err(anyhow::anyhow!("the broker says {other:?} of the cluster").into()),
        }
    }
}
