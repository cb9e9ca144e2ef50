//! What people said of failing questions.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};

use super::schema::memory_retrieval_question_marks::dsl;
use crate::report::QuestionStatus;

/// Marks that are kept at most; the oldest ones go.
const MAX_MARKS: i64 = 10_000;
/// Bytes of a question at most: 1024 characters.
const MAX_BYTES: usize = 4096;

/// What was said of a question, and when, in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) status: QuestionStatus,
    pub(crate) marked_at: i64,
}

/// Marks a question, which is given in lower case and without punctuation. `open` is stored as well, because
/// another text of the group may be marked.
pub(super) fn set(conn: &mut SqliteConnection, question: &str, mark: Mark) -> QueryResult<()> {
    let last: Option<i64> =
        dsl::memory_retrieval_question_marks.select(diesel::dsl::max(dsl::sequence)).get_result(conn)?;
    let values = (
        dsl::status.eq(mark.status.as_str()),
        dsl::marked_at.eq(mark.marked_at),
        dsl::sequence.eq(last.unwrap_or(0).saturating_add(1)),
    );
    // Not REPLACE, which would empty columns that users added.
    diesel::insert_into(dsl::memory_retrieval_question_marks)
        .values((dsl::question.eq(question), values))
        .on_conflict(dsl::question)
        .do_update()
        .set(values)
        .execute(conn)?;
    diesel::sql_query(
        "DELETE FROM memory_retrieval_question_marks WHERE question IN \
         (SELECT question FROM memory_retrieval_question_marks ORDER BY sequence DESC LIMIT -1 OFFSET ?)",
    )
    .bind::<BigInt, _>(MAX_MARKS)
    .execute(conn)?;
    Ok(())
}

/// All questions that are marked, the one that was marked first comes first. Bounded, whatever others wrote into the
/// table.
pub(crate) fn all(conn: &mut SqliteConnection) -> QueryResult<Vec<(String, Mark)>> {
    let stored: Vec<(String, String, i64)> = dsl::memory_retrieval_question_marks
        .filter(diesel::dsl::sql::<Bool>(&format!("octet_length(question) <= {MAX_BYTES}")))
        .order(dsl::sequence.desc())
        .limit(MAX_MARKS)
        .select((dsl::question, dsl::status, dsl::marked_at))
        .load(conn)?;
    let marks = stored.into_iter().rev().filter_map(|(question, status, marked_at)| {
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
             INSERT INTO memory_retrieval_question_marks SELECT 'question ' || n, 'ignored', n, n FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        for marked_at in MAX_MARKS..MAX_MARKS + 3 {
            let mark = Mark { status: QuestionStatus::Resolved, marked_at };
            set(&mut conn, &format!("question {marked_at}"), mark).unwrap();
        }
        let marks = all(&mut conn).unwrap();
        assert_eq!(i64::try_from(marks.len()).unwrap(), MAX_MARKS);
        assert_eq!((marks[0].0.as_str(), marks[9999].0.as_str()), ("question 3", "question 10002"));
    }

    #[test]
    fn marks_are_in_the_order_in_which_they_were_set() {
        let mut conn = migrated();
        // The clock went back in between.
        for (question, marked_at) in [("one", 9), ("two", 9), ("three", 1), ("one", 0)] {
            set(&mut conn, question, Mark { status: QuestionStatus::Ignored, marked_at }).unwrap();
        }
        let marks: Vec<String> = all(&mut conn).unwrap().into_iter().map(|(question, _)| question).collect();
        assert_eq!(marks, ["two", "three", "one"]);
    }

    #[test]
    fn a_mark_that_is_too_long_is_not_stored_and_not_loaded() {
        let mut conn = migrated();
        let mark = Mark { status: QuestionStatus::Ignored, marked_at: 0 };
        set(&mut conn, &"😀".repeat(1024), mark).unwrap();
        assert!(set(&mut conn, &"x".repeat(1025), mark).is_err());
        diesel::sql_query("PRAGMA ignore_check_constraints = ON").execute(&mut conn).unwrap();
        set(&mut conn, &"x".repeat(1 << 20), mark).unwrap();
        assert_eq!(all(&mut conn).unwrap().len(), 1);
    }
}
