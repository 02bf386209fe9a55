"""The main job as a graph of stages: data, hygiene, embed, select, finetune, evaluate, table, report.

Each method is one stage. It asks the stages before it for their folders (which does them, or finds them done) and
writes a folder of its own; `Run.do` decides whether there is anything to do. So `pipeline.report()` is the whole job,
and any other method is the job up to there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.asked import COPY, check_experiment, described, notice_of
from deft_tsds.data.examples import Examples
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.embed.shared import write_shared_store
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.evaluate import statistics_of, tabulate
from deft_tsds.gradients import write_gradients
from deft_tsds.report import write_report
from deft_tsds.running import processes
from deft_tsds.running.locks import locked
from deft_tsds.runs import Run, Stage, atomic_write, console, plain, read_jsonl, stage_key, write_json, write_jsonl
from deft_tsds.selection import Selection, select
from deft_tsds.t5.card import write_model_card
from deft_tsds.t5.generate import generate_texts
from deft_tsds.t5.load import load_tokenizer, save_pretrained, train_tokenizer
from deft_tsds.t5.lora import add_lora
from deft_tsds.training.finetune import (
    LossTerms,
    Pairs,
    Trained,
    finetune,
    finetune_many,
    learning_rates,
    make_optimizer,
    tokenize_pairs,
)
from deft_tsds.training.sharding import make_mesh
from deft_tsds.training.tracking import copy_log


class Pipeline:
    """An experiment bound to its run folder."""

    def __init__(self, experiment: cfg.Experiment, description: str = "", *, run: Run | None = None):
        """Check the config and read the data; nothing that takes long happens before both are found good.

        Args:
          experiment: what to do.
          description: for the report.
          run: where the stages are kept, in place of the experiment's run folder. For a variant of an experiment, whose
            folder then still says what the experiment itself is.

        Raises:
          ValueError: anything in the config, the data, the model folder or the user's embeddings is wrong.
        """
        self.experiment = experiment
        self.run = run or Run(experiment.workdir, experiment.seed)
        check_experiment(experiment)
        pool = functools.cache(lambda: self.examples("pool"))
        self.selectors = {
            name: build.selector(arm.selector, name=name, pool=pool) for name, arm in experiment.arms.items()
        }
        if experiment.model != "scratch":
            build.check_pretrained(experiment.model, dtype=experiment.train.dtype)
        # Of several processes, the writer alone has the folder; the others wait for what it does there.
        with locked(self.run.folder) if processes.is_writer() else contextlib.nullcontext():
            self._check_against_data()
            if run is None and processes.is_writer():
                asked = described(experiment, name=self.run.folder.name, pool=self.clean.results["pool"])
                write_json(self.run.folder / "experiment.json", {"description": description, **asked})

    def _check_against_data(self) -> None:
        queries = self.data.results["queries"]
        build.check_encoders(self.experiment, self.data.results)
        candidates = self.clean.results["pool"]
        for name, arm in self.experiment.arms.items():
            budget = build.budget(arm, candidates, name=name)
            if hasattr(self.selectors[name], "check_budget"):
                self.selectors[name].check_budget(budget, candidates)
            if getattr(self.selectors[name], "needs_queries", False) and not queries:
                raise ValueError(f"arms.{name}: {type(arm.selector).__name__} needs target examples: set data.queries.")
        by_gradients = any(isinstance(config, cfg.Gradients) for config in self.experiment.encoders.values())
        if by_gradients and queries and not all(self.examples("queries").targets):
            raise ValueError("encoders: Gradients need target examples with targets: set target_field of data.queries.")

    @cached_property
    def data(self) -> Stage:
        """Read, check and hold out: data/{pool,queries,validation}.jsonl and data/tests/<name>.jsonl."""
        experiment = self.experiment

        def work(folder: Path) -> dict[str, Any]:
            corpus = build.corpus(
                experiment.data,
                validation=experiment.train.validation,
                folder=folder / "made",
                key=stage_key(experiment.seed, "data"),
            )
            corpus.pool.save(folder / "pool.jsonl")
            if corpus.queries is not None:
                corpus.queries.save(folder / "queries.jsonl")
            if corpus.validation is not None:
                corpus.validation.save(folder / "validation.jsonl")
            for name, test in corpus.tests.items():
                limit = experiment.evaluate.limit
                test = test if limit is None else test.take(np.arange(min(limit, len(test))))
                test.save(folder / "tests" / f"{name}.jsonl")
            return {  # sizes, for the checks that come before any long work
                "pool": len(corpus.pool),
                "queries": len(corpus.queries or ()),
                "tests": {name: len(test) for name, test in corpus.tests.items()},
            }

        settings = {
            "data": experiment.data,
            "files": build.data_identity(experiment.data),
            "validation": experiment.train.validation,
            "limit": experiment.evaluate.limit,
        }
        return self.run.do("data", work, settings=settings)

    @cached_property
    def clean(self) -> Stage:
        """The pool without what hygiene drops: hygiene/{pool.jsonl,report.json}; without hygiene, the data stage."""
        hygiene, seed = self.experiment.hygiene, self.experiment.seed
        if hygiene is None:
            return self.data
        by_length = hygiene.shortest is not None or hygiene.longest is not None
        by_embedding = hygiene.near == "embedding" or hygiene.leak_cosine is not None

        def work(folder: Path) -> dict[str, Any]:
            pool = Examples.load(self.data.folder / "pool.jsonl")
            tests = {name: self.examples(f"tests/{name}") for name in self.data.results["tests"]}
            if self.data.results["queries"]:
                tests["the target examples"] = self.examples("queries")
            given: dict[str, Any] = {}
            if by_length:
                tokenizer = load_tokenizer(str(self.tokenizer.folder / "tokenizer"))
                sides = [tokenizer(list(texts), verbose=False).input_ids for texts in (pool.prompts, pool.targets)]
                given["lengths"] = [len(prompt) + len(target) for prompt, target in zip(*sides, strict=True)]
            if by_embedding:
                key = stage_key(seed, "embed")
                config = cast(cfg.AnyEncoder, self.experiment.encoder)  # `build` has refused rows that the user gives
                encoder = build.encoder(config, pool, path=folder / "encoder.npz", key=key)

                def embedded(name: str, examples: Examples) -> np.ndarray:
                    return write_store(folder / "embed" / name, examples.prompts, encoder, ids=examples.ids).array()

                given["embeddings"] = embedded("pool", pool)
                given["test_embeddings"] = {name: embedded(f"tests/{name}", test) for name, test in tests.items()}
            cleaned = hygiene(
                # Not the instructions: they are long, and the same for many.
                [f"{source} {target}" for source, target in zip(pool.inputs, pool.targets, strict=True)],
                key=stage_key(seed, "hygiene"),
                tests={name: test.inputs for name, test in tests.items()},
                inputs=pool.inputs,
                **given,
            )
            cleaned.save(folder / "report.json")
            pool.take(cleaned.rows).save(folder / "pool.jsonl")
            console.print(str(cleaned), markup=False, soft_wrap=True)
            return {"pool": len(cleaned.rows), "rows": cleaned.rows.tolist()}

        settings: dict[str, Any] = {"hygiene": hygiene}
        if by_embedding:
            encoder = self.experiment.encoder
            settings |= {"encoder": encoder, "files": build.encoder_identity(encoder)}
        upstream = [self.data, self.tokenizer] if by_length else [self.data]
        return self.run.do("hygiene", work, settings=settings, upstream=upstream)

    def examples(self, name: str) -> Examples:
        """The examples of this name: "pool" (clean), "queries", "validation", "tests/NAME"."""
        stage = self.clean if name == "pool" else self.data
        return Examples.load(stage.folder / f"{name}.jsonl")

    @cached_property
    def embed(self) -> Stage:
        """Embeddings of pool and queries by the experiment's `encoder`: embed/pool/ and embed/queries/ (stores)."""
        return self._embed("embed", self.experiment.encoder)

    def encoded(self, encoder: str | None) -> Stage:
        """The same by one of `encoders`: encoders/<name>/{pool,queries}/. None is `embed`; n-grams are counted from the
        texts of the stage that this then is."""
        if encoder is None:
            return self.embed
        config = self.experiment.encoders[encoder]
        if isinstance(config, cfg.Ngrams):
            return self.clean
        if isinstance(config, cfg.Gradients):
            return self._gradients(f"encoders/{encoder}", config)
        return self._embed(f"encoders/{encoder}", config)

    def embeddings(self, name: str) -> np.ndarray:
        """The embeddings of the "pool" or, where there are any, of the "queries", [n, D], by the `encoder`."""
        return open_store(self.embed.folder / name).array()

    def representation(self, name: str, encoder: str | None) -> np.ndarray | NgramCounts:
        """The same by one of `encoders`."""
        config = None if encoder is None else self.experiment.encoders[encoder]
        if isinstance(config, cfg.Ngrams):
            return NgramCounts(self.examples(name).prompts, longest=config.longest, buckets=config.buckets)
        return open_store(self.encoded(encoder).folder / name).array()

    @property
    def _seen(self) -> list[str]:
        """What selectors see: the pool, and the queries where there are any."""
        return ["pool", "queries"] if self.data.results["queries"] else ["pool"]

    def _embed(self, stage: str, config: Any) -> Stage:
        experiment = self.experiment

        @processes.everywhere
        def work(folder: Path) -> None:
            if isinstance(config, cfg.OwnEmbeddings):
                if not processes.is_writer():
                    return
                for name, given in build.given_embeddings(config, self.data.results).items():
                    texts = given.texts
                    if name == "pool" and experiment.hygiene is not None:
                        texts = [texts[row] for row in self.clean.results["rows"]]
                    write_store(folder / name, texts, given, normalize=config.normalize)
                return
            with processes.writer_first("the encoder"):  # which finds what it learned from the pool
                key = stage_key(experiment.seed, "embed")
                encoder = build.encoder(config, self.examples("pool"), path=folder / "encoder.npz", key=key)
            for name in self._seen:
                examples = self.examples(name)
                write_shared_store(folder / name, examples.prompts, encoder, ids=examples.ids)

        settings = {"encoder": config, "files": build.encoder_identity(config)}
        return self.run.do(stage, work, settings=settings, upstream=[self.clean])

    def _gradients(self, stage: str, config: cfg.Gradients) -> Stage:
        """A short run on a share of the pool, and the gradients at its checkpoints: warm-up/, pool/, queries/."""
        train = self.experiment.train

        @processes.everywhere
        def work(folder: Path) -> None:
            write_gradients(
                folder,
                self._start(0),
                self.examples("pool"),
                {"queries": self.examples("queries")} if self.data.results["queries"] else {},
                self._tokenized,
                key=stage_key(self.experiment.seed, stage),
                mesh=_mesh(),
                **dataclasses.asdict(config),
            )

        settings = {"encoder": config, "model": self.experiment.model, "scratch": self.experiment.scratch}
        settings |= {"tokens": [train.max_input_tokens, train.max_target_tokens], "dtype": train.dtype}
        return self.run.do(stage, work, settings=settings, upstream=[self.clean, self.tokenizer])

    def _tokenized(self, examples: Examples, weights: np.ndarray | None = None) -> Pairs:
        train = self.experiment.train
        return tokenize_pairs(
            load_tokenizer(str(self.tokenizer.folder / "tokenizer")),
            examples.prompts,
            examples.targets,
            max_input_tokens=train.max_input_tokens,
            max_target_tokens=train.max_target_tokens,
            weights=weights,
            ids=examples.ids,
        )

    def select(self, arm: str, replicate: int) -> Stage:
        """Choose: select/<arm>/seed-<r>/selection/."""
        section = self.experiment.arms[arm]
        budget = build.budget(section, self.clean.results["pool"], name=arm)
        encoder = section.encoder

        @processes.everywhere
        def work(folder: Path) -> dict[str, Any]:
            pool = self.examples("pool")
            selection = select(
                self.representation("pool", encoder),
                self.representation("queries", encoder) if self.data.results["queries"] else None,
                selector=self.selectors[arm],
                budget=budget,
                key=stage_key(self.experiment.seed, "select", arm, str(replicate)),
                groups=pool.groups,
                query_groups=self.query_groups,
            )
            if not processes.is_writer():
                return {}
            selection.save(folder / "selection")
            selection.to_jsonl(pool, folder / "chosen.jsonl")
            decisions = selection.info.get("auto", {})
            for decision in decisions.values():
                console.print(f"{arm}: {decision['why']}", markup=False, soft_wrap=True)
            return {"chosen": len(selection.indices)} | ({"auto": decisions} if decisions else {})

        settings = {"selector": section.selector, "budget": budget, "replicate": replicate}
        if files := build.selector_identity(section.selector):
            settings["files"] = files
        if encoder is not None:
            settings["encoder"] = self.experiment.encoders[encoder]
        name = f"select/{arm}/seed-{replicate}"
        return self.run.do(name, work, settings=settings, upstream=[self.encoded(encoder)])

    @cached_property
    def query_groups(self) -> tuple[str, ...] | None:
        """The group of each target example, where they have any."""
        groups = self.examples("queries").groups if self.data.results["queries"] else ()
        return groups if any(groups) else None

    @cached_property
    def tokenizer(self) -> Stage:
        """The tokenizer that every arm shares: trained on the pool for "scratch", else the model's own."""
        experiment = self.experiment

        def work(folder: Path) -> dict[str, Any]:
            if experiment.model == "scratch":
                pool = Examples.load(self.data.folder / "pool.jsonl")
                tokenizer = train_tokenizer([*pool.prompts, *pool.targets], vocab_size=experiment.scratch.vocabulary)
            else:
                tokenizer = load_tokenizer(experiment.model)
            tokenizer.save_pretrained(folder / "tokenizer")
            return {"vocabulary": len(tokenizer)}

        settings = {
            "model": experiment.model,
            "files": build.identity(experiment.model),
            "vocabulary": experiment.scratch.vocabulary,
        }
        return self.run.do("tokenizer", work, settings=settings, upstream=[self.data])

    def _start(self, replicate: int) -> Any:
        """The model before fine-tuning; the same for every arm of a replicate."""
        experiment = self.experiment
        if experiment.model != "scratch":
            return build.pretrained(experiment.model, dtype=experiment.train.dtype)[0]
        return build.scratch_model(
            experiment.scratch,
            vocabulary=self.tokenizer.results["vocabulary"],
            dtype=experiment.train.dtype,
            key=stage_key(experiment.seed, "initialise", str(replicate)),
        )

    def finetune(self, arm: str, replicate: int) -> Stage:
        """Fine-tune on what the arm chose: finetune/<arm>/seed-<r>/{checkpoints,metrics.jsonl,model}. With
        `side_by_side`: finetune/<arm>/side-by-side/, with the checkpoints of all replicates and a seed-<r>/ of each."""
        train = self.experiment.train
        if train.side_by_side:
            together, run = self._finetune_all(arm), f"seed-{replicate}"
            return Stage(
                f"{together.name}/{run}",
                together.folder / run,
                together.fingerprint,
                together.results[run],
                (together,),
            )
        selected = self.select(arm, replicate)
        name = f"finetune/{arm}/seed-{replicate}"

        @processes.everywhere
        def work(folder: Path) -> dict[str, Any]:
            model, chosen, pairs = self._before_training(selected, replicate)
            trained = finetune(
                model,
                pairs,
                key=stage_key(self.experiment.seed, "finetune", str(replicate)),
                folder=folder,
                patience=train.patience,
                keep_best=train.keep_best,
                mesh=_mesh(),
                description=name,
                **self._recipe(len(pairs)),
            )
            return self._keep(folder, model, chosen, pairs, trained) if processes.is_writer() else {}

        settings = self._training_settings | {"replicate": replicate}
        stage = self.run.do(name, work, settings=settings, upstream=[selected, self.tokenizer])
        if processes.is_writer():
            copy_log(stage.folder / "metrics.jsonl", self.experiment.track)
        return stage

    def _finetune_all(self, arm: str) -> Stage:
        """All replicates of an arm in one program."""
        replicates = range(self.experiment.replicates)
        selected = [self.select(arm, replicate) for replicate in replicates]
        name, runs = f"finetune/{arm}/side-by-side", [f"seed-{replicate}" for replicate in replicates]

        def work(folder: Path) -> dict[str, Any]:
            models, chosen, pairs = zip(*map(self._before_training, selected, replicates), strict=True)
            steps = sorted({build.steps(self.experiment.train, len(each)) for each in pairs})
            if len(steps) > 1:
                raise ValueError(
                    f"train.side_by_side: the replicates of {arm} chose different numbers of examples, so that epochs "
                    f"would be {steps[0]} to {steps[-1]} steps: give --train.steps, or --train.side-by-side False."
                )
            trained = finetune_many(
                models,
                pairs,
                keys=[stage_key(self.experiment.seed, "finetune", str(replicate)) for replicate in replicates],
                folder=folder,
                names=runs,
                description=name,
                **self._recipe(len(pairs[0])),
            )
            return {
                run: self._keep(folder / run, models[place], chosen[place], pairs[place], trained[place])
                for place, run in enumerate(runs)
            }

        settings = self._training_settings | {"replicates": len(runs)}
        stage = self.run.do(name, work, settings=settings, upstream=[*selected, self.tokenizer])
        for run in runs:
            copy_log(stage.folder / run / "metrics.jsonl", self.experiment.track)
        return stage

    @property
    def _training_settings(self) -> dict[str, Any]:
        experiment = self.experiment
        return {"train": experiment.train, "model": experiment.model, "scratch": experiment.scratch}

    def _before_training(self, selected: Stage, replicate: int) -> tuple[Any, Selection, Pairs]:
        """The model to start from, what was chosen, and its pairs."""
        lora = self.experiment.train.lora
        selection = Selection.load(selected.folder / "selection")
        pairs = self._tokenized(self.examples("pool").take(selection.indices), selection.weights)
        model = self._start(replicate)
        if lora is not None:
            key = stage_key(self.experiment.seed, "lora", str(replicate))
            model = add_lora(model, **dataclasses.asdict(lora), key=key)
        return model, selection, pairs

    def _recipe(self, examples: int) -> dict[str, Any]:
        """What `finetune` and `finetune_many` are told alike."""
        train = self.experiment.train
        return {
            "rates": learning_rates(
                steps=build.steps(train, examples),
                peak=train.learning_rate,
                warmup=train.warmup,
                schedule=train.schedule,
            ),
            "batch_size": train.batch_size,
            "accumulate": train.accumulate,
            "terms": LossTerms(train.label_smoothing, train.z_loss),
            "optimizer": make_optimizer(train.optimizer, weight_decay=train.weight_decay, clip=train.clip),
            "validation": self._tokenized(self.examples("validation")) if train.validation else None,
            "validate_every": train.validate_every,
            "save_every": train.save_every,
            "log_every": train.log_every,
            "profile": train.profile,
            "track": self.experiment.track,
        }

    def _keep(self, folder: Path, model: Any, chosen: Selection, pairs: Pairs, trained: Trained) -> dict[str, Any]:
        """Write the trained model with tokenizer and card: model/."""
        base = self.experiment.model
        save_pretrained(model, folder / "model")
        load_tokenizer(str(self.tokenizer.folder / "tokenizer")).save_pretrained(folder / "model")
        write_model_card(
            folder / "model",
            base="A T5 with random weights" if base == "scratch" else base,
            selector=str(chosen.info["selector"]),
            count=len(chosen),
            selection={name: value for name, value in chosen.info.items() if name != "seconds"},
            training={"settings": plain(self.experiment.train), **plain(trained)},
        )
        return {**plain(trained), "pairs": len(pairs), "cut": pairs.cut}

    def evaluate(self, arm: str, replicate: int) -> Stage:
        """Generate and score: evaluate/<arm>/seed-<r>/{predictions_<test>.jsonl,statistics_<test>.<metric>.npy}."""
        section = self.experiment.evaluate
        upstream = [self.data] if arm == COPY else [self.data, self.finetune(arm, replicate)]

        def work(folder: Path) -> None:
            def answers(test: Examples) -> list[str]:
                if arm == COPY:
                    return list(test.inputs)
                return generate_texts(
                    model,
                    tokenizer,
                    test.prompts,
                    max_input_tokens=self.experiment.train.max_input_tokens,
                    max_new_tokens=section.max_new_tokens,
                    batch_size=section.batch_size,
                    num_beams=section.beams,
                )

            if arm != COPY:
                model, tokenizer = build.pretrained(
                    str(upstream[1].folder / "model"), dtype=self.experiment.train.dtype
                )
            for name in self.data.results["tests"]:
                test = self.examples(f"tests/{name}")
                path = folder / f"predictions_{name}.jsonl"
                # A killed attempt at the same request may have got so far.
                predictions = [row["prediction"] for row in read_jsonl(path)] if path.exists() else answers(test)
                statistics = statistics_of(predictions, test, section.metrics)
                for metric, array_NxS in statistics.items():
                    path_of_metric = folder / f"statistics_{name}.{metric}.npy"
                    with atomic_write(path_of_metric) as temporary, temporary.open("wb") as file:
                        np.save(file, array_NxS, allow_pickle=False)
                rows = ({"id": i, "prediction": p} for i, p in zip(test.ids, predictions, strict=True))
                write_jsonl(path, rows)

        settings = {"evaluate": section, "max_input_tokens": self.experiment.train.max_input_tokens}
        return self.run.do(f"evaluate/{arm}/seed-{replicate}", work, settings=settings, upstream=upstream)

    @cached_property
    def table(self) -> Stage:
        """Scores of every arm on every test set, with intervals: table/table.json."""
        section, replicates = self.experiment.evaluate, range(self.experiment.replicates)
        arms = list(self.experiment.arms)
        evaluated = {COPY: [self.evaluate(COPY, 0)]}
        for arm in arms:
            evaluated[arm] = [self.evaluate(arm, replicate) for replicate in replicates]

        def work(folder: Path) -> None:
            tests = list(self.data.results["tests"])
            statistics = {
                arm: {
                    (test, metric): [
                        np.load(stage.folder / f"statistics_{test}.{metric}.npy", allow_pickle=False)
                        for stage in stages
                    ]
                    for test in tests
                    for metric in section.metrics
                }
                for arm, stages in evaluated.items()
            }
            table = tabulate(
                statistics,
                tests=tests,
                metrics=section.metrics,
                resamples=section.resamples,
                level=section.level,
                seed=self.experiment.seed,
            )
            write_json(folder / "table.json", table)

        upstream = [stage for stages in evaluated.values() for stage in stages]
        settings = {"resamples": section.resamples, "level": section.level, "metrics": section.metrics, "arms": arms}
        return self.run.do("table", work, settings=settings, upstream=upstream)

    def report(self) -> Path:
        """The page that explains the run: report/report.html."""

        def work(folder: Path) -> None:
            write_report(self.run.folder, folder / "report.html")

        stage = self.run.do("report", work, settings={"config": self.experiment}, upstream=[self.table])
        return stage.folder / "report.html"

    def each(self, stage: Callable[[str, int], Stage]) -> None:
        """Do one stage for every arm and replicate."""
        for arm in self.experiment.arms:
            for replicate in range(self.experiment.replicates):
                stage(arm, replicate)

    @property
    def notice(self) -> str | None:
        """What must be said wherever results of this run are shown."""
        return notice_of(self.experiment)


def _mesh() -> Mesh | None:
    """All devices of all processes: parameters are split within a host, batches among hosts too. One process trains on
    one device."""
    return make_mesh(shards=jax.local_device_count()) if processes.count() > 1 else None
