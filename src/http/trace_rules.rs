//! Rules for the retrievals of traces: what their spans do not say.

use serde::{Deserialize, Serialize};

use crate::model::record::StrategyName;
use crate::rollup::ScoreDirection;

/// Rule for the retrievals of some sources and strategies. A span has neither a threshold nor the
/// direction of its scores, and its name is that of a class.
///
/// Of each field, the first rule that matches and sets it counts.
///
/// ```
/// use failure_logger::ScoreDirection;
/// use failure_logger::http::{HttpOptions, TraceRule};
///
/// let rule = TraceRule {
///     source: Some("shop*".into()),
///     strategy: Some("VectorStoreRetriever".into()),
///     name: Some("semantic".into()),
///     confidence_threshold: Some(0.35),
///     score_direction: Some(ScoreDirection::HigherIsBetter),
///     ..TraceRule::default()
/// };
/// let options = HttpOptions::default().trace_rule(rule)?;
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceRule {
    /// Pattern for the `service.name` of the resource; `*` stands for any text. Default: any source.
    pub source: Option<String>,
    /// Pattern for the strategy that the span names: a collection, a data source, or the name of the
    /// span without its method. Default: any strategy.
    pub strategy: Option<String>,
    /// Name of the strategy in the log. Default: that of the span.
    pub name: Option<String>,
    /// Score that separates good results. Default: none, every result is good enough.
    pub confidence_threshold: Option<f32>,
    /// Direction in which scores are better. Default: that of the dialect.
    pub score_direction: Option<ScoreDirection>,
    /// `true` to ignore the retrievals. Default: they are counted.
    pub ignore: bool,
}

/// Threshold and direction of a strategy's scores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Judgement {
    pub(crate) threshold: Option<f32>,
    /// `None`: the direction that the dialect implies.
    pub(crate) direction: Option<ScoreDirection>,
}

/// Effect of all rules on one retrieval.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TraceRuling {
    pub(crate) name: Option<String>,
    pub(crate) judgement: Judgement,
    pub(crate) ignore: bool,
}

impl TraceRule {
    /// Returns an error that names the field, its value and the accepted values.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let Self {
            name,
            confidence_threshold,
            score_direction,
            ignore,
            ..
        } = self;
        if let Some(threshold) = confidence_threshold.filter(|threshold| !threshold.is_finite()) {
            return Err(format!(
                "confidence_threshold = {threshold}: expected a finite number"
            ));
        }
        if let Some(name) = name
            && (name.trim().is_empty() || name.chars().count() > StrategyName::MAX_CHARACTERS)
        {
            return Err(format!(
                "name = {name:?}: expected a name of 1 to 64 characters"
            ));
        }
        let has_effect = *ignore
            || name.is_some()
            || confidence_threshold.is_some()
            || score_direction.is_some();
        if !has_effect {
            return Err(
                "a rule without effect: expected name, confidence_threshold, score_direction or \
                 ignore"
                    .into(),
            );
        }
        Ok(())
    }

    fn matches(&self, source: &str, strategy: &str) -> bool {
        let fits = |pattern: &Option<String>, text| {
            pattern
                .as_deref()
                .is_none_or(|pattern| matches_pattern(pattern, text))
        };
        fits(&self.source, source) && fits(&self.strategy, strategy)
    }

    /// Returns the effect of the rules on a retrieval of this source and strategy.
    pub(crate) fn ruling(rules: &[Self], source: &str, strategy: &str) -> TraceRuling {
        let mut ruling = TraceRuling::default();
        for rule in rules.iter().filter(|rule| rule.matches(source, strategy)) {
            let Judgement {
                threshold,
                direction,
            } = &mut ruling.judgement;
            *threshold = threshold.or(rule.confidence_threshold);
            *direction = direction.or(rule.score_direction);
            if ruling.name.is_none() {
                ruling.name.clone_from(&rule.name);
            }
            ruling.ignore |= rule.ignore;
        }
        ruling
    }
}

/// Returns `true` if the text fits the pattern. In the pattern, `*` stands for any text and every
/// other character for itself. Takes time in proportion to the product of both lengths at most.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is the best one, because it leaves the most text for the other parts.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("shop", "shop", true),
            ("shop", "shops", false),
            ("", "", true),
            ("", "x", false),
            ("*", "", true),
            ("*", "x", true),
            ("shop*", "shop", true),
            ("shop*", "ashop", false),
            ("*shop", "ashop", true),
            ("*shop", "shops", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("ä*", "äß", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn first_rule_that_sets_a_field_counts() {
        let rules = [
            TraceRule {
                source: Some("shop".into()),
                confidence_threshold: Some(0.1),
                ..TraceRule::default()
            },
            TraceRule {
                strategy: Some("V*".into()),
                name: Some("semantic".into()),
                confidence_threshold: Some(0.2),
                score_direction: Some(ScoreDirection::LowerIsBetter),
                ..TraceRule::default()
            },
            TraceRule {
                source: Some("noise".into()),
                ignore: true,
                ..TraceRule::default()
            },
        ];
        let ruling = TraceRule::ruling(&rules, "shop", "Vector");
        assert_eq!(ruling.name.as_deref(), Some("semantic"));
        assert_eq!(ruling.judgement.threshold, Some(0.1));
        let direction = Some(ScoreDirection::LowerIsBetter);
        assert_eq!(
            (ruling.judgement.direction, ruling.ignore),
            (direction, false)
        );
        let other = TraceRule::ruling(&rules, "wiki", "bm25");
        assert_eq!(other, TraceRuling::default());
        assert!(TraceRule::ruling(&rules, "noise", "bm25").ignore);
    }

    #[test]
    fn rule_without_effect_or_with_an_unusable_value_is_an_error() {
        let rule = TraceRule::default();
        assert!(rule.validate().unwrap_err().contains("without effect"));
        let with = |threshold, name: &str| TraceRule {
            confidence_threshold: Some(threshold),
            name: Some(name.into()),
            ..TraceRule::default()
        };
        assert_eq!(with(0.5, "x").validate(), Ok(()));
        assert!(with(f32::NAN, "x").validate().unwrap_err().contains("NaN"));
        assert!(with(0.5, " ").validate().unwrap_err().contains("name"));
        assert!(with(0.5, &"x".repeat(65)).validate().is_err());
    }
}
