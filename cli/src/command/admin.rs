//! `geminga admin`: the admin REST API for people and scripts. JSON output is what the server
//! answered; tables are made of it here.

use geminga_client::Client;
use geminga_proto::topic_name::{NamespaceName, TopicName};
use serde_json::{Value, json};

use crate::args::OutputFormat;
use crate::args::admin::{
    AdminArgs, AdminCommand, LedgersCommand, MetaCommand, NamespacesCommand, Place, RepairsCommand,
    SubscriptionsCommand, TenantsCommand, TopicsCommand,
};
use crate::config::Settings;
use crate::exit::Outcome;
use crate::http::{AdminApi, segment};
use crate::output;

mod nodes;
mod repair;
mod show;

/// Does what the arguments say.
///
/// # Errors
/// What the server refused, or that it can't be reached.
pub async fn run(args: &AdminArgs, settings: &Settings) -> Outcome {
    let names = Client::builder()
        .service_url(&settings.service_url)
        .tenant(&settings.tenant)
        .namespace(&settings.namespace)
        .build()?;
    let api = AdminApi::new(&settings.admin_url)?;
    let admin = Admin { api, names, settings, output: args.output };
    match &args.command {
        AdminCommand::Topics(command) => admin.topics(command).await,
        AdminCommand::Subscriptions(command) => admin.subscriptions(command).await,
        AdminCommand::Ledgers(command) => admin.ledgers(command).await,
        AdminCommand::Tenants(command) => admin.tenants(command).await,
        AdminCommand::Namespaces(command) => admin.namespaces(command).await,
        AdminCommand::Meta(MetaCommand::Dump { prefix }) => admin.dump(prefix).await,
        AdminCommand::Brokers(command) => admin.brokers(command).await,
        AdminCommand::Bookies(command) => admin.bookies(command).await,
        AdminCommand::Repairs(RepairsCommand::List) => admin.repairs().await,
        AdminCommand::Bundles(command) => admin.bundles(command).await,
        AdminCommand::Cluster(command) => admin.cluster(command).await,
    }
}

struct Admin<'a> {
    api: AdminApi,
    /// Only resolves short names; it is never connected.
    names: Client,
    settings: &'a Settings,
    output: OutputFormat,
}

fn namespace_path(name: &NamespaceName) -> String {
    format!("{}/{}", segment(name.tenant()), segment(name.namespace()))
}

/// Where a topic is in the API.
pub(super) fn topic_path(topic: &TopicName) -> String {
    let namespace = namespace_path(topic.namespace());
    format!("/admin/v2/persistent/{namespace}/{}", segment(topic.local()))
}

fn place_body(place: Place) -> Value {
    match place {
        Place::Earliest => json!({ "ledgerId": -1, "entryId": -1 }),
        Place::Latest => json!({ "ledgerId": i64::MAX, "entryId": i64::MAX }),
        Place::Entry { ledger, entry } => json!({ "ledgerId": ledger, "entryId": entry }),
    }
}

impl Admin<'_> {
    fn topic(&self, name: &str) -> anyhow::Result<TopicName> {
        Ok(self.names.topic(name)?)
    }

    /// Shows an answer: as it is, or as a table.
    fn show(&self, answer: &Value, table: impl FnOnce(&Value) -> std::io::Result<()>) -> Outcome {
        match self.output {
            OutputFormat::Json => output::json(answer)?,
            OutputFormat::Text => table(answer)?,
        }
        Ok(())
    }

    /// Says that it is done, in words or as JSON.
    fn done(&self, what: &str) -> Outcome {
        self.show(&json!({ "done": what }), |_| output::line(what))
    }

    async fn topics(&self, command: &TopicsCommand) -> Outcome {
        match command {
            TopicsCommand::List { namespace } => {
                let namespace = match namespace {
                    Some(name) => name.parse()?,
                    None => NamespaceName::new(&self.settings.tenant, &self.settings.namespace)?,
                };
                let path = format!("/admin/v2/persistent/{}", namespace_path(&namespace));
                let topics = self.api.get(&path).await?;
                self.show(&topics, |topics| show::names("topic", topics))
            }
            TopicsCommand::Stats { topic } => {
                let path = topic_path(&self.topic(topic)?);
                let stats = self.api.get(&format!("{path}/stats")).await?;
                self.show(&stats, show::topic_stats)
            }
            TopicsCommand::InternalStats { topic } => {
                let path = topic_path(&self.topic(topic)?);
                let stats = self.api.get(&format!("{path}/internalStats")).await?;
                self.show(&stats, show::internal_stats)
            }
            TopicsCommand::Create { topic, partitions: _ } => {
                let topic = self.topic(topic)?;
                self.api.put(&topic_path(&topic), None).await?;
                self.done(&format!("created {topic}"))
            }
            TopicsCommand::Delete { topic, force } => {
                let topic = self.topic(topic)?;
                self.api.delete(&format!("{}?force={force}", topic_path(&topic))).await?;
                self.done(&format!("deleted {topic}"))
            }
            TopicsCommand::Unload { topic } => {
                let topic = self.topic(topic)?;
                self.api.put(&format!("{}/unload", topic_path(&topic)), None).await?;
                self.done(&format!("unloaded {topic}"))
            }
        }
    }

    async fn subscriptions(&self, command: &SubscriptionsCommand) -> Outcome {
        let path = |topic: &str, subscription: &str| -> anyhow::Result<String> {
            let topic = topic_path(&self.topic(topic)?);
            Ok(format!("{topic}/subscription/{}", segment(subscription)))
        };
        match command {
            SubscriptionsCommand::List { topic } => {
                let path = topic_path(&self.topic(topic)?);
                // The names alone would tell nobody how they are.
                let stats = self.api.get(&format!("{path}/stats")).await?;
                self.show(&stats["subscriptions"], show::subscriptions)
            }
            SubscriptionsCommand::Create { topic, subscription, from } => {
                let path = path(topic, subscription)?;
                self.api.put(&path, Some(place_body(*from))).await?;
                self.done(&format!("created subscription {subscription}"))
            }
            SubscriptionsCommand::Reset { topic, subscription, to } => {
                let path = format!("{}/resetcursor", path(topic, subscription)?);
                self.api.post(&path, Some(place_body(*to))).await?;
                self.done(&format!("reset subscription {subscription}"))
            }
            SubscriptionsCommand::Delete { topic, subscription, force } => {
                let path = format!("{}?force={force}", path(topic, subscription)?);
                self.api.delete(&path).await?;
                self.done(&format!("deleted subscription {subscription}"))
            }
        }
    }

    async fn ledgers(&self, command: &LedgersCommand) -> Outcome {
        match command {
            LedgersCommand::List { topic } => {
                let mut options = String::from("limit=1000");
                if let Some(topic) = topic {
                    let topic = self.topic(topic)?.to_string();
                    options.push_str(&format!("&topic={}", segment(&topic)));
                }
                let ledgers = self.pages("ledgers", &options).await?;
                self.show(&ledgers, show::ledgers)
            }
            LedgersCommand::Show { ledger } => {
                let path = format!("/admin/v2/geminga/ledgers/{ledger}");
                let ledger = self.api.get(&path).await?;
                self.show(&ledger, show::ledger)
            }
            LedgersCommand::Check { ledger } => self.check_ledger(*ledger).await,
        }
    }

    async fn tenants(&self, command: &TenantsCommand) -> Outcome {
        let path = |tenant: &str| format!("/admin/v2/tenants/{}", segment(tenant));
        match command {
            TenantsCommand::List => {
                let tenants = self.api.get("/admin/v2/tenants").await?;
                self.show(&tenants, |tenants| show::names("tenant", tenants))
            }
            TenantsCommand::Create { tenant } => {
                self.api.put(&path(tenant), None).await?;
                self.done(&format!("created tenant {tenant}"))
            }
            TenantsCommand::Delete { tenant } => {
                self.api.delete(&path(tenant)).await?;
                self.done(&format!("deleted tenant {tenant}"))
            }
        }
    }

    async fn namespaces(&self, command: &NamespacesCommand) -> Outcome {
        let path = |name: &str| -> anyhow::Result<String> {
            let name: NamespaceName = name.parse()?;
            Ok(format!("/admin/v2/namespaces/{}", namespace_path(&name)))
        };
        match command {
            NamespacesCommand::List { tenant } => {
                let tenant = tenant.as_ref().unwrap_or(&self.settings.tenant);
                let path = format!("/admin/v2/namespaces/{}", segment(tenant));
                let namespaces = self.api.get(&path).await?;
                self.show(&namespaces, |namespaces| show::names("namespace", namespaces))
            }
            NamespacesCommand::Create { namespace, bundles } => {
                let body = bundles.map(|count| json!({ "bundles": { "numBundles": count } }));
                self.api.put(&path(namespace)?, body).await?;
                self.done(&format!("created namespace {namespace}"))
            }
            NamespacesCommand::Policies { namespace } => {
                let policies = self.api.get(&path(namespace)?).await?;
                self.show(&policies, output::json)
            }
            NamespacesCommand::Delete { namespace } => {
                self.api.delete(&path(namespace)?).await?;
                self.done(&format!("deleted namespace {namespace}"))
            }
        }
    }

    async fn dump(&self, prefix: &str) -> Outcome {
        let options = format!("limit=1000&prefix={}", segment(prefix));
        let entries = self.pages("meta", &options).await?;
        self.show(&entries, |entries| {
            entries.as_array().into_iter().flatten().try_for_each(output::json_line)
        })
    }

    /// All pages of one of our own listings, as one array.
    async fn pages(&self, what: &str, options: &str) -> anyhow::Result<Value> {
        let field = if what == "meta" { "entries" } else { what };
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/admin/v2/geminga/{what}?{options}{after}");
            let mut page = self.api.get(&path).await?;
            if let Value::Array(items) = page[field].take() {
                all.extend(items);
            }
            after = match &page["next"] {
                Value::Null => return Ok(Value::Array(all)),
                Value::String(key) => format!("&after={}", segment(key)),
                next => format!("&after={next}"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_of_encoded_segments() {
        let topic: TopicName = "persistent://acme/shop/a-b".parse().expect("valid");
        assert_eq!(topic_path(&topic), "/admin/v2/persistent/acme/shop/a-b");
    }

    #[test]
    fn places_are_pulsars_message_ids() {
        assert_eq!(place_body(Place::Earliest), json!({"ledgerId": -1, "entryId": -1}));
        let max = i64::MAX;
        assert_eq!(place_body(Place::Latest), json!({"ledgerId": max, "entryId": max}));
        let entry = Place::Entry { ledger: 5, entry: 7 };
        assert_eq!(place_body(entry), json!({"ledgerId": 5, "entryId": 7}));
    }
}
