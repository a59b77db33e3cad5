"""Lesson 07: a mean over classes, its interval, paired runs, and which rows may be compared."""

import numpy as np

from pandalib.teach.exercises.base import Exercise

# What has to be equal before two results are compared.
SETTING = ("images", "normal classes", "level", "outliers", "network")


class MeanOverClasses(Exercise):
    key = "mean_over_classes"

    def cases(self):
        rng = np.random.default_rng(71)
        yield np.array(["star", "star", "heart"]), np.array([0.8, 0.9, 0.5])
        for n, n_classes, n_failed in ((12, 4, 0), (30, 5, 4)):
            drawn = rng.integers(0, n_classes, size=n - n_classes) ** 2 % n_classes
            classes = np.concatenate([np.arange(n_classes), drawn])
            values = 0.6 + 0.07 * classes + 0.05 * rng.normal(size=n)
            values[n_classes : n_classes + n_failed] = np.nan
            yield classes, values

    def solution(self, classes, values):
        return float(np.mean(self._per_class(classes, values)))

    def mistakes(self, classes, values):
        means = self._per_class(classes, values)
        zero_for_failed = np.nan_to_num(values)
        return {
            "pooled": np.nanmean(values),
            "best_seed": np.mean(self._per_class(classes, values, np.nanmax)),
            "failed_as_zero": np.mean(self._per_class(classes, zero_for_failed)),
            "failed_kept": np.mean(self._per_class(classes, values, np.mean)),
            "each_class": means,
            "median": np.median(means),
        }

    def _per_class(self, classes, values, of=np.nanmean):
        return [of(values[classes == one]) for one in np.unique(classes)]


class ClassInterval(Exercise):
    key = "class_interval"

    def cases(self):
        rng = np.random.default_rng(72)
        for n, draws in ((10, 400), (6, 200), (3, 50)):
            yield rng.uniform(0.5, 1, size=n), rng.integers(0, n, size=(draws, n))

    def solution(self, means, draws):
        return np.percentile(means[draws].mean(axis=1), [2.5, 97.5])

    def mistakes(self, means, draws):
        resampled = means[draws].mean(axis=1)
        half_width = 1.96 * means.std(ddof=1) / len(means) ** 0.5
        return {
            "of_the_classes": np.percentile(means, [2.5, 97.5]),
            "of_all_draws": np.percentile(means[draws], [2.5, 97.5]),
            "across_draws": np.percentile(means[draws].mean(axis=0), [2.5, 97.5]),
            "all_of_it": np.percentile(resampled, [0, 100]),
            "five_each": np.percentile(resampled, [5, 95]),
            "reversed": np.percentile(resampled, [97.5, 2.5]),
            "normal_theory": means.mean() + half_width * np.array([-1, 1]),
            "per_cent": np.percentile(resampled, [0.025, 0.975]),
        }


class PairedGain(Exercise):
    key = "paired_gain"

    def cases(self):
        rng = np.random.default_rng(73)
        tasks = [f"cifar10:{name}" for name in ("cat", "horse", "ship", "truck", "airplane")]
        levels = dict(zip(tasks, rng.uniform(0.6, 0.85, size=len(tasks)).tolist()))
        whole = [
            self._record(rng, task, method, seed, levels[task])
            for task in tasks
            for method in ("dn2", "early", "ewc")
            for seed in (0, 1, 2)
        ]
        rng.shuffle(whole)
        draws = rng.integers(0, len(tasks), size=(200, len(tasks)))
        yield whole, "early", "dn2", draws
        gaps = [dict(one) for one in whole if one["seed"] != 2 or one["method"] != "dn2"]
        for one in gaps[::7]:
            del one["roc_auc"], one["history"]
            one["error"] = {"type": "MemoryError", "message": "out of memory"}
        pooled = [
            self._record(rng, "+".join(tasks[:2]), method, 0, 0.5) for method in ("dn2", "ewc")
        ]
        n = len(self._pairs(gaps, "ewc", "dn2"))
        draws = rng.integers(0, n, size=(300, n))
        yield gaps + pooled, "ewc", "dn2", draws

    def _record(self, rng, task, method, seed, level):
        gain = {"dn2": 0, "early": 0.02, "ewc": 0.03}[method]
        value = level + gain + 0.02 * float(rng.normal())
        moments = [] if method == "dn2" else [level, value + 0.03 * float(rng.random()), value]
        history = [{"epoch": epoch, "roc_auc": moment} for epoch, moment in enumerate(moments)]
        about = {"task": task, "method": method, "seed": seed}
        return about | {"roc_auc": value, "history": history}

    def _pairs(self, results, method, other, value_of=lambda one: one.get("roc_auc"), pooled=False):
        """Task -> the differences of its pairs."""
        found = {(one["task"], one["seed"], one["method"]): value_of(one) for one in results}
        gains = {}
        for (task, seed, name), value in sorted(found.items()):
            beside = found.get((task, seed, other))
            wanted = name == method and (pooled or "+" not in task)
            if wanted and value is not None and beside is not None:
                gains.setdefault(task, []).append(value - beside)
        return gains

    def _summary(self, values, draws):
        return np.array([values.mean(), *ClassInterval().solution(values, draws)])

    def solution(self, results, method, other, draws, **how):
        gains = self._pairs(results, method, other, **how)
        return self._summary(np.array([np.mean(of) for of in gains.values()]), draws)

    def mistakes(self, results, method, other, draws):
        case = results, method, other, draws
        gains = self._pairs(results, method, other)
        per_class = np.array([np.mean(of) for of in gains.values()])
        means = {
            name: np.array([self._mean(results, name, task) for task in gains])
            for name in (method, other)
        }
        right = self._summary(per_class, draws)
        ends = {name: self._summary(means[name], draws)[1:] for name in means}
        runs = np.concatenate(list(gains.values()))
        return {
            "reversed": -right[[0, 2, 1]],
            "unpaired": self._summary(means[method] - means[other], draws),
            "apart": np.array([right[0], *(ends[method] - ends[other][::-1])]),
            "pooled": self.solution(*case, pooled=True),
            "best_moment": self.solution(*case, value_of=self._best),
            "failed_as_zero": self.solution(*case, value_of=lambda one: one.get("roc_auc", 0)),
            "over_runs": self._summary(runs, draws),
            "of_the_classes": np.array([right[0], *np.percentile(per_class, [2.5, 97.5])]),
            "mean_alone": right[0],
            "ends_alone": right[1:],
        }

    def _best(self, one):
        moments = [moment["roc_auc"] for moment in one.get("history", [])]
        return max(moments, default=one.get("roc_auc"))

    def _mean(self, results, method, task):
        """Of all runs of a class that ended, with and without a partner."""
        own = [one for one in results if (one["method"], one["task"]) == (method, task)]
        return np.mean([one["roc_auc"] for one in own if "roc_auc" in one])


class Fair(Exercise):
    key = "fair"

    def cases(self):
        row = dict(zip(SETTING, ("CIFAR-10", 1, "image", False, "ResNet-152")))
        row |= {"method": "DN2", "ROC-AUC": 0.9}
        other = dict(zip(SETTING, ("MVTec AD", 20, "pixel", True, "ResNet-18")))
        pixel = row | {"level": "pixel"}
        yield row, row | {"ROC-AUC": 0.5}
        yield row | {"method": "PANDA-EWC"}, row
        yield row | other, row | other
        yield pixel, pixel | {"method": "SPADE", "ROC-AUC": 0.95}
        yield from ((row, row | {name: other[name]}) for name in SETTING)
        # The lesson's own rows have neither method nor result, and not always one order.
        bare = {name: row[name] for name in SETTING}
        yield bare, dict(reversed(bare.items()))
        yield bare, bare | {"outliers": True}

    def solution(self, ours, theirs):
        return all(ours[name] == theirs[name] for name in SETTING)

    def mistakes(self, ours, theirs):
        fair = self.solution(ours, theirs)

        def without(ignored):
            return all(ours[name] == theirs[name] for name in SETTING if name != ignored)

        return {
            "everything": ours == theirs,
            "method": fair and ours.get("method") == theirs.get("method"),
            "level": without("level"),
            "outliers": without("outliers"),
            "normal_classes": without("normal classes"),
            "network": without("network"),
            "images_alone": ours["images"] == theirs["images"],
            "reversed": not fair,
            "any": any(ours[name] == theirs[name] for name in SETTING),
        }


EXERCISES = [MeanOverClasses(), ClassInterval(), PairedGain(), Fair()]
