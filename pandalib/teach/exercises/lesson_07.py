"""Lesson 07: a mean over classes, its interval, and which rows of a table may be compared."""

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


EXERCISES = [MeanOverClasses(), ClassInterval(), Fair()]
