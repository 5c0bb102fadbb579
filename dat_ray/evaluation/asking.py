"""Asks one model what the attacks want to know, and lets the judges read: every answer is stored before anybody uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.engines.calls import Answer, CompletionCall, Failure, complete
from dat_ray.engines.switching import Mapper
from dat_ray.evaluation.attacker import Attacker
from dat_ray.evaluation.attacks.base import MakeSearch, ReadInstead
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.judges import Judges
from dat_ray.evaluation.questions import AttackerRequest, Question, SearchRequest
from dat_ray.evaluation.search.pool import run_searches
from dat_ray.evaluation.store import Chunk, ShardStore
from dat_ray.progress import ProgressCounter


@dataclass(frozen=True)
class AttemptStores:
    """Where what is asked of models lies.

    Attributes:
        answered: answers that no judge has read yet: no model is asked twice.
        attempts: the finished rows.
        searches: what searches with gradients found.
    """

    answered: ShardStore
    attempts: ShardStore
    searches: ShardStore


@dataclass(frozen=True)
class ModelSession:
    """One model under attack: the `Session` of `dat_ray.evaluation.attacks.base`.

    Attributes:
        model: who is asked.
        recipe: resolved.
        suite: name of the evaluation.
        stores: for the rows.
        judges: read the answers.
        attacker: writes texts.
        target: gives the model's engines, started at its first call: a finished model is not loaded again.
        counter: of the rows that are done.
    """

    model: Model
    recipe: Recipe
    suite: str
    stores: AttemptStores
    judges: Judges
    attacker: Attacker
    target: Callable[[], Mapper]
    counter: ProgressCounter

    def ask(self, questions: Sequence[Question], stem: str | None = None, read_instead: ReadInstead | None = None) -> list[Row]:
        """See `Session.ask`."""
        wanted = self._chunks(questions, stem)
        # What an attack asks later on may rest on the rows of a step as they were.
        todo = self._not_finished(wanted, judged_again=stem is None)
        unanswered = self.stores.answered.load_done(todo)
        for chunk in todo:
            if chunk not in unanswered:
                self._finish(chunk, read_instead)
        if unanswered:
            payloads = [(self._call(chunk),) for chunk in unanswered]
            for index, replies in self.target().map(complete, payloads):
                chunk = unanswered[index]
                self.stores.answered.put(chunk, self._answered(chunk, replies))
                self._finish(chunk, read_instead)
        return self._rows(wanted)

    def judge(self, answered: Sequence[tuple[Question, Answer]]) -> list[Row]:
        """See `Session.judge`."""
        wanted = self._chunks([question for question, _ in answered])
        replies = iter([reply for _, reply in answered])
        rows = {
            chunk.name: [
                self._attempt(identifier, question, next(replies))
                for identifier, question in zip(chunk.ids, chunk.items, strict=True)
            ]
            for chunk in wanted
        }
        for chunk in self._not_finished(wanted, judged_again=True):
            self._judge(chunk, rows[chunk.name])
        return self._rows(wanted)

    def write(self, stem: str, requests: Sequence[AttackerRequest], max_new_tokens: int | None = None) -> list[Row]:
        """See `Writer.write`."""
        return self.attacker.write(stem, requests, max_new_tokens)

    def search(self, attack: str, method: MakeSearch, requests: Sequence[SearchRequest]) -> list[Row]:
        """See `Session.search`."""
        return run_searches(self.recipe, self.model, attack, method, requests, self.stores.searches, self.counter)

    def skip(self, attempts: int, texts: int = 0) -> None:
        """See `Session.skip`."""
        self.counter.add(attempts + texts, self.model.name)

    def _chunks(self, questions: Sequence[Question], stem: str | None = None) -> list[Chunk[Question]]:
        asked = {question.attack for question in questions}
        assert len(asked) <= 1, "a shard is of one attack"
        ids = [question.attempt_id(self.suite, self.model.name, self.model.weights) for question in questions]
        name = stem or f"{self.model.name}-{''.join(asked)}"
        return self.stores.attempts.cut(name, ids, questions)

    def _not_finished(self, wanted: Sequence[Chunk[Question]], *, judged_again: bool) -> list[Chunk[Question]]:
        todo = self.stores.attempts.load_done(wanted)
        if judged_again:
            absent = {chunk.name for chunk in todo}
            self.judges.ask_again(self.stores.attempts, [chunk for chunk in wanted if chunk.name not in absent])
        self.counter.add(sum(len(chunk.items) for chunk in wanted) - sum(len(chunk.items) for chunk in todo), self.model.name)
        return todo

    def _rows(self, wanted: Sequence[Chunk[Question]]) -> list[Row]:
        return [row for chunk in wanted for row in self.stores.attempts.rows_of(chunk)]

    def _finish(self, chunk: Chunk[Question], read_instead: ReadInstead | None) -> None:
        rows = self.stores.answered.rows_of(chunk)
        if read_instead is not None:
            for number, text in read_instead(chunk.stem, chunk.items, rows).items():
                if isinstance(text, Failure):
                    rows[number]["error"] = text.error
                else:
                    rows[number]["judged_text"] = text
        self._judge(chunk, rows)
        self.stores.answered.remove(chunk)

    def _judge(self, chunk: Chunk[Question], rows: list[Row]) -> None:
        self.judges.judge_rows(rows)
        self.stores.attempts.put(chunk, rows)
        self.counter.add(len(rows), f"{self.model.name}, {rows[0]['attack']}")

    def _call(self, chunk: Chunk[Question]) -> CompletionCall:
        asked = [question for question in chunk.items if question.prompt is not None]
        temperatures = {question.temperature for question in asked}
        assert len(temperatures) <= 1, "an attack asks at one temperature"
        return CompletionCall(
            [question.prompt or "" for question in asked],
            self.recipe.evaluation.max_new_tokens,
            self.recipe.target.batch_size,
            next(iter(temperatures), 0.0),
            [question.seed or 0 for question in asked],
            [question.prefill or "" for question in asked] if any(question.prefill for question in asked) else None,
            [question.history for question in asked] if any(question.history for question in asked) else None,
        )

    def _answered(self, chunk: Chunk[Question], replies: Sequence[Answer]) -> list[Row]:
        waiting = iter(replies)
        rows = []
        for identifier, question in zip(chunk.ids, chunk.items, strict=True):
            if question.prompt is None:
                reply = Answer(None, 0.0, question.error or "no prompt")
            else:
                reply = next(waiting)
                if reply.error:
                    reply = replace(reply, error=f"target: {reply.error}")
            rows.append(self._attempt(identifier, question, reply))
        return rows

    def _attempt(self, identifier: str, question: Question, reply: Answer) -> Row:
        """A row of schema ATTEMPTS without verdicts."""
        return {
            "attempt_id": identifier,
            "model": self.model.name,
            "attack": question.attack,
            "behavior_id": question.behavior_id,
            "attempt_index": question.attempt_index,
            "goal": question.goal,
            "prompt": question.prompt,
            "completion": reply.text,
            "seconds": reply.seconds,
            # What the attempt cost: what its prompt cost, and one query of the target.
            "model_calls": question.model_calls + (question.prompt is not None),
            "error": reply.error,
            "seed": question.seed,
            "temperature": question.temperature,
            "prefill": question.prefill,
            "variant": question.variant,
            "history": list(question.history) or None,
            "goal_similarity": question.goal_similarity,
            "judged_text": None,
        }
