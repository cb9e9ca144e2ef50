//! What people said of failing questions.

use std::collections::HashMap;

use diesel::prelude::*;

use super::schema::memory_retrieval_question_marks::dsl;
use crate::report::QuestionStatus;

/// Marks that are kept at most; the oldest ones go.
const MAX_MARKS: i64 = 10_000;

/// What was said of a question, and when, in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) status: QuestionStatus,
    pub(crate) marked_at: i64,
}

/// Marks a question, or takes its mark away.
pub(super) fn set(conn: &mut SqliteConnection, question: &str, mark: Mark) -> QueryResult<()> {
    if mark.status == QuestionStatus::Open {
        return diesel::delete(dsl::memory_retrieval_question_marks.find(question)).execute(conn).map(drop);
    }
    diesel::replace_into(dsl::memory_retrieval_question_marks)
        .values((dsl::question.eq(question), dsl::status.eq(mark.status.as_str()), dsl::marked_at.eq(mark.marked_at)))
        .execute(conn)?;
    let too_old = dsl::memory_retrieval_question_marks
        .order(dsl::marked_at.desc())
        .offset(MAX_MARKS)
        .limit(1)
        .select(dsl::marked_at)
        .first::<i64>(conn)
        .optional()?;
    if let Some(too_old) = too_old {
        diesel::delete(dsl::memory_retrieval_question_marks.filter(dsl::marked_at.le(too_old))).execute(conn)?;
    }
    Ok(())
}

/// All questions that are marked.
pub(crate) fn all(conn: &mut SqliteConnection) -> QueryResult<HashMap<String, Mark>> {
    let stored: Vec<(String, String, i64)> =
        dsl::memory_retrieval_question_marks.select((dsl::question, dsl::status, dsl::marked_at)).load(conn)?;
    let marks = stored.into_iter().filter_map(|(question, status, marked_at)| {
        // Nothing is known of a status of a newer version.
        Some((question, Mark { status: QuestionStatus::parse(&status)?, marked_at }))
    });
    Ok(marks.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrated;

    #[test]
    fn the_oldest_marks_make_room_for_new_ones() {
        let mut conn = migrated();
        diesel::sql_query(
            "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 9999) \
             INSERT INTO memory_retrieval_question_marks SELECT 'question ' || n, 'ignored', n FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        for marked_at in MAX_MARKS..MAX_MARKS + 3 {
            let mark = Mark { status: QuestionStatus::Resolved, marked_at };
            set(&mut conn, &format!("question {marked_at}"), mark).unwrap();
        }
        let marks = all(&mut conn).unwrap();
        assert_eq!(i64::try_from(marks.len()).unwrap(), MAX_MARKS);
        assert!(!marks.contains_key("question 2") && marks.contains_key("question 3"));
    }
}
