//! [`Report`]: a measurement as one JSON object, or as text.

use std::time::Duration;

use serde_json::{Value, json};

use super::recorder::Recorded;
use crate::args::OutputFormat;
use crate::config::units::{show_bytes, show_count};
use crate::output;

/// What was measured, under which settings.
pub(super) struct Report {
    /// produce, roundtrip, …
    pub test: &'static str,
    /// From what to what the latency is.
    pub latency_of: &'static str,
    /// What was recorded.
    pub recorded: Recorded,
    /// Over how long.
    pub elapsed: Duration,
    /// The load.
    pub load: Value,
    /// The durability settings in force.
    pub durability: Value,
}

impl Report {
    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        self.recorded.latency_ns.value_at_quantile(quantile) as f64 / 1e6
    }

    fn max_ms(&self) -> f64 {
        self.recorded.latency_ns.max() as f64 / 1e6
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let recorded = &self.recorded;
        // Nothing measured is not the same as measured at nothing.
        let latency = (!recorded.latency_ns.is_empty()).then(|| {
            json!({
                "p50": self.quantile_ms(0.5),
                "p99": self.quantile_ms(0.99),
                "p99.9": self.quantile_ms(0.999),
                "max": self.max_ms(),
            })
        });
        json!({
            "test": self.test,
            "messages": recorded.answered,
            "bytes": recorded.bytes,
            "seconds": self.elapsed.as_secs_f64(),
            "messages_per_s": self.per_second(recorded.answered),
            "bytes_per_s": self.per_second(recorded.bytes),
            "latency_ms": latency,
            "latency_of": self.latency_of,
            "longest_gap_ms": recorded.longest_gap.as_secs_f64() * 1e3,
            "errors": recorded.errors,
            "first_error": recorded.first_error,
            "load": self.load,
            "durability": self.durability,
        })
    }

    /// Shows it; messages that failed make the command fail.
    pub fn show(&self, format: OutputFormat) -> anyhow::Result<()> {
        match format {
            OutputFormat::Json => output::json(&self.json())?,
            OutputFormat::Text => self.text()?,
        }
        let recorded = &self.recorded;
        if let Some(error) = &recorded.first_error {
            anyhow::bail!("{} messages failed; the first: {error}", recorded.errors);
        }
        Ok(())
    }

    fn latency_text(&self) -> String {
        if self.recorded.latency_ns.is_empty() {
            return "-".to_owned();
        }
        format!(
            "p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms",
            self.quantile_ms(0.5),
            self.quantile_ms(0.99),
            self.quantile_ms(0.999),
            self.max_ms(),
        )
    }

    fn text(&self) -> std::io::Result<()> {
        let recorded = &self.recorded;
        let rate = |count| self.per_second(count) as u64;
        output::pairs(&[
            ("test", self.test.to_owned()),
            ("messages", show_count(recorded.answered)),
            ("rate", format!("{}/s", show_count(rate(recorded.answered)))),
            ("throughput", format!("{}/s", show_bytes(rate(recorded.bytes)))),
            ("latency of", self.latency_of.to_owned()),
            ("latency", self.latency_text()),
            ("longest gap", format!("{:.1} ms", recorded.longest_gap.as_secs_f64() * 1e3)),
            ("errors", show_count(recorded.errors)),
            ("durability", plain(&self.durability)),
            ("load", plain(&self.load)),
        ])
    }
}

/// `name value, name value`.
fn plain(value: &Value) -> String {
    let pair = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    };
    value.as_object().into_iter().flatten().map(pair).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::recorder::{Recorder, Window};
    use super::*;

    #[test]
    fn a_report_has_the_fields_that_other_tools_read() {
        let window = Window::new(Duration::ZERO, Duration::from_secs(60));
        let recorder = Recorder::new(window);
        recorder.received(0, Duration::from_millis(2), 1024);
        let report = Report {
            test: "produce",
            latency_of: "x",
            recorded: recorder.recorded(),
            elapsed: Duration::from_millis(500),
            load: json!({ "size": 1024 }),
            durability: json!({ "write_quorum": 1, "sync_mode": "direct-dsync" }),
        };
        let json = report.json();
        assert_eq!(
            (json["messages_per_s"].as_f64(), json["bytes_per_s"].as_f64()),
            (Some(2.0), Some(2048.0))
        );
        for name in ["p50", "p99", "p99.9", "max"] {
            let latency = json["latency_ms"][name].as_f64().expect("a number");
            assert!((1.99..2.01).contains(&latency), "{name} {latency}");
        }
        assert_eq!((&json["errors"], &json["durability"]["write_quorum"]), (&json!(0), &json!(1)));
        assert_eq!(plain(&report.durability), "sync_mode direct-dsync, write_quorum 1");
    }
}
